"""torchvision's transforms, as detection needs them: a crop whose sides are drawn, sizes for thin images."""

from __future__ import annotations

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


class RandomSizeCrop(v2.Transform):
    """A crop whose sides are drawn from a range, at most as large as the image."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list) -> dict[str, int]:
        height, width = v2.functional.get_size(next(x for x in flat_inputs if isinstance(x, tv_tensors.Image)))
        h, w = (_draw(min(self.low, side), min(side, self.high)) for side in (height, width))
        return {"top": _draw(0, height - h), "left": _draw(0, width - w), "height": h, "width": w}

    _get_params = make_params  # torchvision before 0.21

    def transform(self, inpt, params: dict[str, int]):
        return self._call_kernel(v2.functional.crop, inpt, **params)

    _transform = transform


class ShortestSize(v2.RandomShortestSize):
    """torchvision's, which would leave nothing of the short side of a thin image: here it has a pixel."""

    def make_params(self, flat_inputs: list) -> dict[str, tuple[int, ...]]:
        return {"size": tuple(max(1, side) for side in super().make_params(flat_inputs)["size"])}


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))
