"""A folder of transformers -> a detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import hub
from common.domain import ClassTable
from common.errors import UserError
from ks_detection.data.transforms import MEAN, STD
from ks_detection.models.hub.config import HubConfig
from ks_detection.models.hub.families import FAMILIES
from ks_detection.models.hub.model import HubDetector


def read_detector(folder: Path, classes: tuple[str, ...] = ()) -> HubDetector:
    """The detector of a folder in eval mode, with the class names that its config states.

    Args:
        classes: names of the rows where the folder holds a config and no weights, so that the detector starts at random.

    Raises:
        UserError: another kind of model, or weights that are missing or do not fit.
    """
    theirs = hub.read_config(folder)
    if theirs.model_type not in FAMILIES:
        raise UserError(f"{folder} holds a {theirs.model_type!r}; detectors known here: {', '.join(FAMILIES)}.")
    kind = FAMILIES[theirs.model_type].kind
    if classes and not hub.has_weights(folder):
        theirs.id2label = dict(enumerate(classes))
        network = hub.build(kind, theirs)
    else:
        network = hub.load(kind, folder, theirs)
    return detector_of(network, hub.beside(folder))


def detector_of(network: Any, files: Mapping[str, bytes] | None = None) -> HubDetector:
    """A model of transformers as a detector, in eval mode, with the class names that its config states.

    files: what stands beside its weights; preprocessor_config.json says how images are shown.
    """
    theirs, names = network.config, hub.row_names(network.config)
    seen = _pictures(files or {}, FAMILIES[theirs.model_type].normalised)
    config = HubConfig(theirs.num_labels, hub.plain_config(theirs), **seen)
    model = HubDetector(config, network).eval()
    model.beside = dict(files or {})
    model.class_table = ClassTable(tuple(_distinct(names))) if names else None
    return model


def _pictures(files: Mapping[str, bytes], normalised: bool) -> dict[str, Any]:
    """Mean, deviation and size of the images, as the image processor beside a model says."""
    said = hub.processor(files)
    result: dict[str, Any] = {}
    if said.get("do_normalize", normalised):
        result["mean"], result["std"] = hub.statistics(said) or (MEAN, STD)
    size = said.get("size")
    if isinstance(size, dict) and size.get("height") and size.get("width"):
        result["size"] = (size["height"], size["width"])
    return result


def _distinct(names: list[str]) -> list[str]:
    """Names that differ: COCO's lists call several rows "N/A"."""
    return [name if names.count(name) == 1 else f"row_{i}" for i, name in enumerate(names)]
