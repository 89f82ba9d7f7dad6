"""A detector of transformers as a config of ours: that library's own config, and how images are shown to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common import hub
from common.errors import UserError
from ks_detection.models.hub.families import FAMILIES, Family
from ks_detection.models.parts.config import DetectorConfig


@dataclass
class HubConfig(DetectorConfig):
    """A detector of one of the `FAMILIES`.

    network: transformers' config as a table, with `model_type`.
    mean, std: of the pixels (0..1) as the network wants them, per channel.
    size: (height, width) in pixels that every image is stretched to; None: as large as it comes.

    Raises:
        UserError: another `model_type`, or a head that is no sigmoid per class.
    """

    modelname = "hub"

    num_classes: int
    network: dict[str, Any]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    size: tuple[int, ...] | None = None
    num_select: int = field(default=300, metadata={"help": "detections kept per image"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mean, self.std = tuple(self.mean), tuple(self.std)
        self.size = self.size and tuple(self.size)
        kind, costs = self.network.get("model_type"), self.family.costs
        if self.network.get("use_focal_loss") is False:
            raise UserError(f"config: a {kind} without focal loss answers with a softmax, which is not supported.")
        values = {name: self.network.get(f"{costs}{name}_cost") for name in ("class", "bbox", "giou")}
        for name, value in values.items():  # of the matching, under the names that ours reads
            if value is not None:
                setattr(self, f"set_cost_{name}", float(value))
        self.focal_alpha = float(self.network.get("matcher_alpha", 0.25))

    @property
    def backbone(self) -> str:
        """What messages call it."""
        return f"of a {self.network['model_type']}"

    @property
    def family(self) -> Family:
        """Raises UserError for a `model_type` that there is none of."""
        kind = str(self.network.get("model_type"))
        if kind not in FAMILIES:
            raise UserError(f"a transformers model of type {kind!r} is no detector known here: {', '.join(FAMILIES)}.")
        return FAMILIES[kind]

    def theirs(self) -> Any:
        """transformers' config object, for `num_classes` classes."""
        made = hub.make_config(self.network, f"config of a {self.network.get('model_type')}")
        made.num_labels = self.num_classes
        return made
