"""Folders with whole weights: ours, with the config and the class names that build the model again, and transformers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import adapters, hub
from common.errors import UserError
from common.schema import read_json
from ks_segmentation.checkpoints.load import CLASSES_KEY
from ks_segmentation.checkpoints.record import MODEL_FILE, ModelRecord
from ks_segmentation.config.load import load_config
from ks_segmentation.models.mask2former.model import build_mask2former
from ks_segmentation.models.parts.from_hub import FromHub
from ks_segmentation.models.parts.segmenter import Segmenter
from ks_segmentation.models.segmenters import segmenter_type


def load_folder(folder: Path, words: Sequence[Any] = ()) -> tuple[Segmenter, list[str]]:
    """(model in eval mode, class names) of a folder that `save_config` completed.

    Args:
        words: KEY, value, ... that override its config; the number of classes is the weights' own.

    Raises:
        UserError: no model there, or words that state another number of classes.
    """
    if not (folder / MODEL_FILE).is_file():
        raise UserError(f"{folder} holds no model of ours ({MODEL_FILE} is missing).")
    record: ModelRecord = read_json(folder / MODEL_FILE, ModelRecord, "name a model/ folder that is whole")
    classes = record.classes
    check_class_count(words, len(classes))
    words = [*flat(record.config), *words, CLASSES_KEY, len(classes)]
    if record.modelname:
        kind = hub_type(record.modelname)
        network = hub.build(kind.network_class, hub.make_config(record.network, str(folder)))
        model: Segmenter = kind.of(network, {name: text.encode() for name, text in record.files.items()}, words)
    else:
        model = build_mask2former(load_config(None, words))
    adapters.load_model(model, folder)
    return model.eval(), classes


def hub_type(name: Any) -> type[FromHub]:
    """The segmenter of a `model_type` of transformers. Raises UserError for one that is not known here."""
    kind = segmenter_type(name)
    if not issubclass(kind, FromHub):
        raise UserError(f"a {name} is no model of transformers.")
    return kind


def load_hub(
    text: str, words: Sequence[Any] = (), fetch: bool = True, random: bool = False
) -> tuple[FromHub, list[str]]:
    """(model in eval mode, class names, [] where its rows are only numbered) of `hf:FOLDER` or `hf:NAME`.

    Args:
        words: KEY, value, ... that win over what the folder says of sizes and pixels.
        fetch: whether a name may be downloaded.
        random: a folder without weights gives a model with random ones.

    Raises:
        UserError: no such folder, a model of another kind, or weights that do not fit.
    """
    folder = hub.folder_of(text, fetch)
    config = hub.read_config(folder)
    kind = hub_type(config.model_type)
    if random and not hub.has_weights(folder):
        network = hub.build(kind.network_class, config)
    else:
        network = hub.load(kind.network_class, folder, config)
    return kind.of(network, hub.beside(folder), words), hub.row_names(config)


def check_class_count(words: Sequence[Any], count: int) -> None:
    """Raises UserError for KEY, value, ... that state another number of classes than there are."""
    stated = [value for key, value in zip(words[::2], words[1::2], strict=False) if key == CLASSES_KEY]
    if stated and str(stated[-1]) != str(count):
        raise UserError(f"{CLASSES_KEY} {stated[-1]}: there are {count} classes; leave it out, it follows from them.")


def flat(table: Mapping[str, Any], prefix: str = "") -> list[Any]:
    """KEY, value, KEY, value, ... of nested tables."""
    words: list[Any] = []
    for key, value in table.items():
        words += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key, value]
    return words
