"""Puts the operator into other libraries' models: transformers, mmcv. Models that exist already follow too."""

import importlib
import importlib.util
import inspect
import sys
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ms_deform_attn.checks import HALVES
from ms_deform_attn.op import ms_deform_attn

# Models of transformers with multi-scale deformable attention; those a version lacks are passed over.
_MODELS = (
    "d_fine deformable_detr deimv2 grounding_dino lw_detr mask2former mm_grounding_dino omdet_turbo oneformer "
    "pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 rf_detr rt_detr rt_detr_v2"
)
TRANSFORMERS = tuple(_MODELS.split())
_MISSING = object()


class Patch:
    """What was replaced. `undo()` puts it back; so does leaving a `with` block."""

    def __init__(self) -> None:
        self.names: list[str] = []  # of what now runs the operator
        self._saved: list[tuple[object, str, object]] = []

    def replace(self, owner: object, name: str, new: object) -> None:
        """Set `owner.name` to `new` unless a patch in force has done so."""
        old = vars(owner).get(name, _MISSING)
        if getattr(getattr(old, "fget", old), "_runs_ms_deform_attn", False):
            return
        self._saved.append((owner, name, old))
        setattr(owner, name, new)
        parts = [getattr(owner, "__module__", None), getattr(owner, "__qualname__", owner.__name__), name]
        self.names.append(".".join(part for part in parts if part))

    def undo(self) -> None:
        """Put everything back. A second call does nothing."""
        while self._saved:
            owner, name, old = self._saved.pop()
            if old is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, old)
        self.names.clear()

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *error) -> None:
        self.undo()


def patch_transformers(*models: str) -> Patch:
    """The patch in force: these models of transformers (default: all that have it) run `ms_deform_attn`.

    Raises:
        ValueError: if a model is not known, or this transformers has no such model.
        ImportError: if transformers is not installed.
    """
    unknown = sorted(set(models) - set(TRANSFORMERS))
    if unknown:
        raise ValueError(f"`models` must be among {', '.join(TRANSFORMERS)}, got {', '.join(unknown)}.")
    if importlib.util.find_spec("transformers") is None:
        raise ImportError("patch_transformers needs transformers. Run: pip install transformers")
    patch = Patch()
    for model in models or TRANSFORMERS:
        name = f"transformers.models.{model}.modeling_{model}"
        if name not in sys.modules and not _exists(name):
            if models:
                raise ValueError(f"`models`: the installed transformers has no {model}.")
            continue
        _patch_module(patch, importlib.import_module(name))
    return patch


def patch_mmcv() -> Patch:
    """The patch in force: `mmcv.ops.MultiScaleDeformableAttention` runs `ms_deform_attn`, on CPU and CUDA.

    Raises:
        ImportError: if mmcv is not installed.
    """
    try:
        module = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    except ImportError as error:
        raise ImportError(f"patch_mmcv needs mmcv: {error}") from error
    patch = Patch()
    for owner in (module, sys.modules.get("mmcv.ops")):
        for name, new in (
            ("MultiScaleDeformableAttnFunction", _MmcvFunction),
            ("multi_scale_deformable_attn_pytorch", _of_levels),
        ):
            if owner is not None and hasattr(owner, name):
                patch.replace(owner, name, new)
    return patch


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _patch_module(patch: Patch, module: ModuleType) -> None:
    """Replace whichever of the three published forms the module has."""
    layer = getattr(module, "MultiScaleDeformableAttention", None)
    if inspect.isclass(layer):
        patch.replace(layer, "forward", _layer_forward)
    if hasattr(module, "multi_scale_deformable_attention"):
        patch.replace(module, "multi_scale_deformable_attention", _of_levels)
    uneven = getattr(module, "multi_scale_deformable_attention_v2", None)
    if uneven is None:
        return
    ours = uneven if getattr(uneven, "_runs_ms_deform_attn", False) else _of_uneven_levels(uneven)
    holders = [cls for cls in vars(module).values() if inspect.isclass(cls) and _holds_function(cls)]
    for cls in holders:  # instances keep the function as an attribute; a property comes before it
        patch.replace(cls, "ms_deformable_attn_core", _held(ours))
    if not holders:
        patch.replace(module, "multi_scale_deformable_attention_v2", ours)


def _holds_function(cls: type) -> bool:
    init = vars(cls).get("__init__")
    return issubclass(cls, nn.Module) and init is not None and "ms_deformable_attn_core" in init.__code__.co_names


def _held(function) -> property:
    def get(self):
        return function

    def keep(self, original):
        vars(self)["ms_deformable_attn_core"] = original  # seen again after `undo`

    get._runs_ms_deform_attn = True
    return property(get, keep)


def _layer_forward(
    self,
    value,
    value_spatial_shapes,
    value_spatial_shapes_list,
    level_start_index,
    sampling_locations,
    attention_weights,
    im2col_step,
):
    return _of_levels(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _of_levels(value, value_spatial_shapes, sampling_locations, attention_weights):
    sizes, starts = _levels(value_spatial_shapes)
    coordinates = _one_dtype(value, sampling_locations, attention_weights)
    return ms_deform_attn(value.contiguous(), sizes, starts, *coordinates)


def _of_uneven_levels(original):
    """The form with another number of points in each level, [N, Q, M, sum of points, 2]."""

    def run(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method="default"):
        if method != "default":  # "discrete" rounds to pixels: another operator
            return original(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
        most = max(num_points_list)
        parts = zip(
            sampling_locations.split(num_points_list, -2), attention_weights.split(num_points_list, -1), strict=True
        )
        padded = [
            (F.pad(place, (0, 0, 0, most - place.shape[-2]), value=-1.0), F.pad(weight, (0, most - weight.shape[-1])))
            for place, weight in parts
        ]  # -1 lies outside every map
        locations, weights = (torch.stack(x, 3) for x in zip(*padded, strict=True))  # [N, Q, M, L, ...]
        return _of_levels(value, value_spatial_shapes, locations, weights)

    run._runs_ms_deform_attn = True
    return run


class _MmcvFunction:
    """Stands where mmcv's autograd function stood."""

    _runs_ms_deform_attn = True

    @staticmethod
    def apply(value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights, im2col_step):
        coordinates = _one_dtype(value, sampling_locations, attention_weights)
        return ms_deform_attn(value, value_spatial_shapes, value_level_start_index, *coordinates)


def _levels(shapes: Tensor | list) -> tuple[Tensor | list, Tensor | list]:
    """(sizes, starts) of levels stored one after the other."""
    if isinstance(shapes, Tensor):
        return shapes, F.pad(shapes.prod(1).cumsum(0)[:-1], (1, 0))
    starts = [0]
    for height, width in shapes[:-1]:
        starts.append(starts[-1] + height * width)
    return list(shapes), starts


def _one_dtype(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates as the operator wants them beside `value`; models under mixed precision mix them."""
    if value.dtype in HALVES:
        kind = locations.dtype if locations.dtype == weights.dtype == value.dtype else torch.float32
    else:
        kind = value.dtype
    return locations.to(kind), weights.to(kind)


for _function in (_layer_forward, _of_levels):
    _function._runs_ms_deform_attn = True
