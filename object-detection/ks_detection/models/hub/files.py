"""A folder of transformers -> a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import hub
from common.domain import ClassTable
from common.errors import UserError
from common.schema import read_json
from ks_detection.data.transforms import MEAN, STD
from ks_detection.models.hub.config import HubConfig
from ks_detection.models.hub.families import FAMILIES
from ks_detection.models.hub.model import HubDetector

PROCESSOR = "preprocessor_config.json"


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
    model = detector_of(network, folder)
    model.beside = hub.beside(folder)
    return model


def detector_of(network: Any, folder: Path | None = None) -> HubDetector:
    """A model of transformers as a detector, in eval mode, with the class names that its config states.

    folder: where a preprocessor_config.json may say how images are shown.
    """
    theirs, names = network.config, hub.row_names(network.config)
    seen = _pictures(folder, FAMILIES[theirs.model_type].normalised)
    config = HubConfig(theirs.num_labels, hub.plain_config(theirs), **seen)
    model = HubDetector(config, network).eval()
    model.class_table = ClassTable(tuple(_distinct(names))) if names else None
    return model


def _pictures(folder: Path | None, normalised: bool) -> dict[str, Any]:
    """Mean, deviation and size of the images, as the folder's preprocessor_config.json says."""
    file = folder / PROCESSOR if folder else None
    said = read_json(file, dict[str, Any], "write it anew") if file and file.is_file() else {}
    result: dict[str, Any] = {}
    if said.get("do_normalize", normalised):
        result = {"mean": tuple(said.get("image_mean") or MEAN), "std": tuple(said.get("image_std") or STD)}
    size = said.get("size")
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        result["size"] = (int(size["height"]), int(size["width"]))
    return result


def _distinct(names: list[str]) -> list[str]:
    """Names that differ: COCO's lists call several rows "N/A"."""
    return [name if names.count(name) == 1 else f"row_{i}" for i, name in enumerate(names)]
