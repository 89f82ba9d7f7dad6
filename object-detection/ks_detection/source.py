"""The flags that name model and data, and the pretrained detector and the images that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from common import adapters, hub, lora, notes
from common.domain import ClassTable
from common.errors import UserError
from common.knobs import knob
from common.splits import every_row, read_list, stated_rows
from ks_detection.checkpoints.load import load_checkpoint
from ks_detection.data.coco_names import COCO
from ks_detection.data.datasets import from_datasets
from ks_detection.data.folders import load
from ks_detection.data.records import DetectionSet
from ks_detection.domain import MODEL_FILE
from ks_detection.models.detectors import build_detector, changed, config_from
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.hub.files import read_detector
from ks_detection.models.parts.config import DetectorConfig
from ks_detection.models.parts.config_file import read_config, read_options


@dataclass
class SourceConfig:
    """Model and data."""

    data: str = knob("digits", "images: a COCO, VOC or YOLO folder, several separated by commas, or digits")
    learn_data: str = knob("", "folder of the classes to learn (three-folder layout)")
    forget_data: str = knob("", "folder of the classes to forget (three-folder layout)")
    retain_data: str = knob("", "folder of the classes to retain (three-folder layout)")
    data_classes: str = knob("", "names of the labels of Dataset objects given from Python, in order")
    checkpoint: str = knob(
        "", "pretrained detector: an official .pth, a swap's .pth, a Hugging Face folder, or a run folder"
    )
    model: str = knob("", "a detector of the transformers library instead: hf:FOLDER, or hf:NAME as on the hub")
    ema: bool = knob(False, "take the averaged weights of an official checkpoint")
    config_file: str = knob("", "a config such as the published config/DINO/*.py (also -c)")
    options: str = knob("", "overrides of its values, or of the checkpoint's: 'key=value key=value'")
    class_names: str = knob("", "names of a checkpoint's logit rows, in order: a,b,c or @file; COCO's if it has 91")


def model_config(source: SourceConfig, **changes: Any) -> DetectorConfig | None:
    """The config of --config-file and --options, or None without a file."""
    if not source.config_file:
        return None
    return config_from(read_config(source.config_file, source.options.split()) | changes)


def own_changes(source: SourceConfig) -> dict[str, Any]:
    """The values of --options where no --config-file takes them: they change the checkpoint's own config."""
    return {} if source.config_file else read_options(source.options.split())


def hub_folder(source: SourceConfig, fetch: bool) -> Path | None:
    """The folder of --model, or of --checkpoint hf:...; None where neither names one. fetch: see `hub.folder_of`."""
    if source.model and not hub.is_hub(source.model):
        raise UserError(f"`--model {source.model}`: give hf:FOLDER or hf:NAME; others are built from --config-file.")
    text = source.checkpoint or source.model
    if not hub.is_hub(text):
        return None
    if source.config_file or source.options or source.ema:
        raise UserError(f"{text} states its own config; leave out --config-file, --options and --ema.")
    return hub.folder_of(text, fetch)


def base_model(source: SourceConfig, fetch: bool = True) -> nn.Module:
    """The pretrained detector with names for its rows; adapters of a published swap are merged.

    Args:
        fetch: whether hf:NAME may be downloaded.

    Raises:
        UserError: nothing to load, or what is there does not fit the config.
    """
    folder = hub_folder(source, fetch)
    if folder is not None:
        model = read_detector(folder)
        model.class_table = name_rows(model, source)
        return model
    if not source.checkpoint:
        raise UserError(
            "a swap starts from a pretrained detector: give --checkpoint (an official .pth file or a run folder of "
            "pretrain.py), or --model hf:FOLDER."
        )
    path = Path(source.checkpoint)
    if path.is_dir() and not hub.is_folder(path):
        path = next((p for p in (path / "model" / MODEL_FILE, path / MODEL_FILE) if p.is_file()), path / MODEL_FILE)
    model = load_checkpoint(path, model_config(source), ema=source.ema, changes=own_changes(source))
    if lora.adapters(model):
        table = model.class_table
        model = adapters.merge(model)
        model.config.lora_rank, model.class_table = 0, table
    model.class_table = name_rows(model, source)
    return model


def name_rows(model: nn.Module, source: SourceConfig) -> ClassTable:
    """Names of the detector's rows: --class-names, its own, or COCO's where there are at least 91 rows."""
    rows = model.config.num_classes
    if source.class_names:
        names = stated_rows(source.class_names, rows)
    elif model.class_table is not None:
        return model.class_table
    elif rows >= 91:
        names = [COCO.get(row, f"row_{row}") for row in range(91)]
    else:
        raise UserError(f"the checkpoint has {rows} classes without names; give --class-names a,b,c or @file.")
    return ClassTable(tuple(every_row(names, rows)), tuple(range(rows)))


def fresh_model(source: SourceConfig, names: tuple[str, ...], ids: tuple[int, ...], fetch: bool = True) -> nn.Module:
    """A detector at random with one row per name, of --model, --config-file or else a DINO."""
    folder = hub_folder(source, fetch)
    if folder is not None:
        model = read_detector(folder, names)
        model.class_table = ClassTable(names, ids)
        return model
    changes = {"num_classes": len(names), "dn_labelbook_size": len(names)}
    config = model_config(source, **changes)
    if config is None:
        config = config_from(changed(DinoConfig(), own_changes(source)).to_dict() | changes)
    model = build_detector(config)
    model.class_table = ClassTable(names, ids)
    return model


def open_data(source: SourceConfig, objects: Any = None) -> tuple[DetectionSet, dict[str, str]]:
    """The images, and the flags learn, forget and retain that a three-folder layout implies.

    objects: (train, test) Datasets in the place of --data.
    """
    folders = {"learn": source.learn_data, "forget": source.forget_data, "retain": source.retain_data}
    if not (folders["forget"] or folders["retain"]):
        data = load(source.data) if objects is None else from_datasets(objects, read_list(source.data_classes))
        data = data.joined(load(source.learn_data)) if source.learn_data else data
        for text in data.notes:
            notes.note(text)
        return data, {}
    if objects is not None:
        raise UserError("--forget-data and --retain-data hold all images of a run; leave them or the Datasets out.")
    missing = [name for name, folder in folders.items() if not folder and name != "learn"]
    if missing:
        raise UserError(f"a three-folder layout needs --{missing[0]}-data as well.")
    parts = {name: load(folder) for name, folder in folders.items() if folder}
    whole, *others = parts.values()
    for other in others:
        whole = whole.joined(other)
    shown = {name: {a.label for image in part.train for a in image.annotations} for name, part in parts.items()}
    return whole, {name: ",".join(c for c in part.classes if c in shown[name]) for name, part in parts.items()}
