"""What the files beside a model of transformers may say: bounds on its config.json, its image processor, its index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from common.errors import UserError

PLAIN = re.compile(r"[\w.-]*")  # of a timm model within a config: no scheme (hf-hub:, local-dir:), no path
FEW = re.compile(r"layers$|num_\w*(blocks|heads|windows)$|^depth$|strides?$")  # what there are 1 to 1,000 of
MORE = re.compile(r"num_queries$|(image|patch)_size$")  # what there are 1 to 100,000 of
SHARE = re.compile(r"dropout|drop_path|drop_rate")
CLASSES = ("num_labels", "num_classes")
FORMS = ("auto_map", "return_dict", "output_attentions", "output_hidden_states")  # code, and the form of answers
MOST_CLASSES, LARGEST = 1_000_000, 1e12

Side = Annotated[int, Meta(ge=1, le=32767)]
Mean = Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=3, max_length=3)]
Deviation = Annotated[list[Annotated[float, Meta(gt=0, le=1e6)]], Meta(min_length=3, max_length=3)]
Size = Side | list[Side] | dict[str, Side | None] | None


class Processor(Struct):
    """What is read of the settings of an image processor."""

    image_mean: Mean | None = None
    image_std: Deviation | None = None
    rescale_factor: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None
    do_center_crop: bool | None = None
    size: Size = None
    crop_size: Size = None


class Index(Struct):
    """The file that says which file of a folder holds which tensor."""

    weight_map: Annotated[dict[str, str], Meta(min_length=1)]


def without_forms(table: Any) -> Any:
    """A config without what names code, or asks for answers in another form than ours."""
    if isinstance(table, Mapping):
        return {key: without_forms(value) for key, value in table.items() if key not in FORMS}
    return table


def check_config(table: Any, where: str) -> None:
    """Raises UserError for values that no model has, and for a timm model that would be fetched or read from elsewhere."""
    entries = table.items() if isinstance(table, Mapping) else enumerate(table) if isinstance(table, list) else ()
    for key, value in entries:
        if key in ("architecture", "backbone") and isinstance(value, str) and not PLAIN.fullmatch(value):
            raise UserError(f"{where}: {key} {value!r} is no plain model name, and is not built.")
        if key == "model_args" and isinstance(value, Mapping):
            odd = [n for n, v in value.items() if isinstance(v, str | Mapping) or re.search("path|pretrain|url|cfg", n)]
            if odd:
                raise UserError(f"{where}: model_args {odd[0]!r} is not allowed; only sizes and switches are.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(str(key), value, where)
        if value == [] and (FEW.search(str(key)) or MORE.search(str(key))):
            raise UserError(f"{where}: {key} is an empty list.")
        check_config(value, where)


def _check_number(key: str, value: float, where: str) -> None:
    least, most = -LARGEST, LARGEST
    if key in CLASSES:
        least, most = 0, MOST_CLASSES
    elif SHARE.search(key):
        least, most = 0, 1
    elif key.endswith("_levels"):
        least, most = 0, 1000
    elif FEW.search(key) or MORE.search(key):
        least, most = 1, 1000 if FEW.search(key) else 100_000
    if not least <= value <= most:
        raise UserError(f"{where}: {key} {value:g} is no value of a model, which are from {least:g} to {most:g}.")
