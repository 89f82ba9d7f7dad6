"""Your own classifier: which layer makes the logits, and what its embeddings are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from common.errors import UserError


class OwnModel(nn.Module):
    """A copy of any classifier for `swap`, for one whose last linear layer is not its head, or that does not call it.

    Args:
        model: images [B, 3, H, W] -> logits [B, C].
        head: name of its linear layer with a row per class, such as "fc" or "body.classifier".
        embed: (model, images) -> embeddings [B, D], which the head then makes logits of; by default what the head gets
            to see when the model runs.

    Raises:
        UserError: no such layer, or it has no rows.
    """

    def __init__(self, model: nn.Module, head: str, embed: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.model, self.embed = copy.deepcopy(model), embed
        layer = dict(self.model.named_modules()).get(head)
        if not isinstance(layer, nn.Linear):
            linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            raise UserError(
                f"{type(model).__name__} has no linear layer {head!r}; it has: {', '.join(linear) or 'none'}."
            )
        self.default_cfg = {"classifier": f"model.{head}"}  # where timm's models name theirs
        self.pretrained_cfg = getattr(model, "pretrained_cfg", None)

    def forward(self, images: Tensor) -> Tensor:
        if self.embed is None:
            return self.model(images)
        return self.get_submodule(self.default_cfg["classifier"])(self.embed(self.model, images))
