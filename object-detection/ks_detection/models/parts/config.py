"""What the configs of all detectors have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

from common.errors import UserError
from common.schema import typed
from ks_detection.models.parts.backbones import BACKBONES

LARGEST = 2**16
T = TypeVar("T", bound="DetectorConfig")


class DetectorConfig:
    """Base of the dataclasses of constants, which stand under their published names.

    modelname: as published configs name the detector.
    fixed: constants that published code can also set otherwise and this one cannot; such a config is refused.
    The rest is read by the shared criterion, matcher and post-processing where a dataclass has no such field.
    """

    modelname: ClassVar[str]
    fixed: ClassVar[Mapping[str, Any]] = {}
    num_classes: int
    num_select = 100  # detections kept per image
    lora_rank, lora_alpha = 0, 1.0
    set_cost_class, set_cost_bbox, set_cost_giou = 2.0, 5.0, 2.0
    cls_loss_coef, bbox_loss_coef, giou_loss_coef, interm_loss_coef = 2.0, 5.0, 2.0, 1.0
    focal_alpha = 0.25

    def __post_init__(self) -> None:
        self._check_positive("num_classes", "num_select")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """The model part of a published config; keys of training, data and dead options are passed over.

        Raises:
            UserError: naming the field, for a value that cannot be built.
        """
        for name, wanted in cls.fixed.items():
            if name in values and values[name] != wanted:
                raise UserError(
                    f"config: `{name}` = {values[name]!r} is not supported, only {wanted!r} (as published) is."
                )
        own = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # subclasses are dataclasses
        given = {name: value for name, value in values.items() if name in own}
        hints = get_type_hints(cls)
        for name, value in given.items():
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise UserError(f"config: `{name}` = {value!r} is too large; at most {LARGEST:,} is read.")
            typed(value, hints[name], f"config: `{name}` = {value!r}")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and checkpoints keep them; `from_dict` reads them back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return plain | {"modelname": self.modelname}


@dataclass
class PyramidConfig(DetectorConfig):
    """Base of the configs of detectors with one of our backbones and several feature levels.

    Raises:
        UserError: naming the field, for a value that cannot be built.
    """

    num_classes: int = field(default=91, metadata={"help": "logit rows; COCO ids run to 90, so 91"})
    backbone: str = field(default="resnet50", metadata={"help": "a published name, mobilenet_v2, tiny, timm:NAME"})
    return_interm_indices: tuple[int, ...] = (1, 2, 3)  # backbone stages used; (0, 1, 2, 3) for 5 scales, (3,) for one
    num_feature_levels: int = 4
    use_checkpoint: bool = False  # recompute Swin blocks in backward (non-reentrant, so adapters get gradients)
    drop_path_rate: float = 0.2  # Swin only
    hidden_dim: int = 256
    nheads: int = 8
    dim_feedforward: int = 1024
    enc_layers: int = 6
    dec_layers: int = 6
    enc_n_points: int = 4
    dec_n_points: int = 4
    dropout: float = 0.0
    num_queries: int = 300
    num_select: int = 100  # detections kept per image
    set_cost_class: float = 2.0
    set_cost_bbox: float = 5.0
    set_cost_giou: float = 2.0
    cls_loss_coef: float = 2.0
    bbox_loss_coef: float = 5.0
    giou_loss_coef: float = 2.0
    focal_alpha: float = 0.25
    lora_rank: int = 0  # above 0: adapters on every FFN linear, in loralib's layout
    lora_alpha: float = 1.0  # loralib's default, which the published runs never changed: the scale is 1 / rank

    def __post_init__(self) -> None:
        super().__post_init__()
        self.return_interm_indices = tuple(self.return_interm_indices)
        self._check_positive("num_queries", "dec_layers", "enc_layers", "nheads", "hidden_dim", "dim_feedforward",
                             "enc_n_points", "dec_n_points", "num_feature_levels")  # fmt: skip
        if self.backbone not in BACKBONES and not self.backbone.startswith("timm:"):
            raise UserError(f"`backbone` is {self.backbone!r}; allowed: {', '.join(BACKBONES)}, or timm:NAME.")
        if self.num_feature_levels < len(self.return_interm_indices):
            raise UserError(
                f"`num_feature_levels` is {self.num_feature_levels} but `return_interm_indices` names "
                f"{len(self.return_interm_indices)} stages; raise the first or shorten the second."
            )
