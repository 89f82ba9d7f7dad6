"""What the configs of all detectors have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, TypeVar, get_type_hints

from common.errors import UserError
from common.schema import typed
from ks_detection.models.parts.backbones import BACKBONES

T = TypeVar("T", bound="DetectorConfig")


class DetectorConfig:
    """Base of the dataclasses of constants, which stand under their published names.

    modelname: as published configs name the detector.
    fixed: constants that published code can also set otherwise and this one cannot; such a config is refused.
    more_backbones: names besides `BACKBONES` and timm:NAME.
    """

    modelname: ClassVar[str]
    fixed: ClassVar[Mapping[str, Any]] = {}
    more_backbones: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.return_interm_indices = tuple(self.return_interm_indices)
        for name in ("num_classes", "num_queries", "dec_layers", "enc_layers", "num_select", "nheads", "hidden_dim",
                     "dim_feedforward", "enc_n_points", "dec_n_points", "num_feature_levels"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.backbone not in (*BACKBONES, *self.more_backbones) and not self.backbone.startswith("timm:"):
            raise UserError(f"`backbone` is {self.backbone!r}; allowed: {', '.join(BACKBONES)}, or timm:NAME.")
        if self.num_feature_levels < len(self.return_interm_indices):
            raise UserError(
                f"`num_feature_levels` is {self.num_feature_levels} but `return_interm_indices` names "
                f"{len(self.return_interm_indices)} stages; raise the first or shorten the second."
            )

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
            typed(value, hints[name], f"config: `{name}` = {value!r}")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and checkpoints keep them; `from_dict` reads them back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return values | {"modelname": self.modelname, "return_interm_indices": list(self.return_interm_indices)}
