"""The seam of segmenters: what the domain asks of one, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from common import adapters
from common.errors import UserError
from common.lora import positions
from common.rows import set_rows
from ks_segmentation.checkpoints.record import save_config
from ks_segmentation.config.load import Config
from ks_segmentation.models.parts.inference import ids_at, segment
from ks_segmentation.models.parts.targets import Segments

Outputs = dict[str, Tensor]
Resize = Callable[[Tensor], Tensor]  # maps [C, h, w] at the size at which classes are wanted


class Rows(NamedTuple):
    """What a model says of the segments of one image.

    target: the T segments; segment: [N] which of them each row is about.
    scores: [N, K] class logits; embedding: [N, D], what the class layer reads.
    """

    target: Segments
    segment: Tensor
    scores: Tensor
    embedding: Tensor


class Regions(NamedTuple):
    """Places in an image that a model takes for one thing.

    masks: [R, H, W] of True and False; called: [R] the class row, or that of "no object"; sure: [R] of its best class,
    0..1.
    """

    masks: Tensor
    called: Tensor
    sure: Tensor


class Segmenter(nn.Module):
    """A segmenter as the domain sees it.

    A new one is a file in `models/` (or a folder with a `model.py`) that sets SEGMENTER to its class; for a model of
    transformers the file's name is the `model_type` of its config.json. Those that answer with queries start from
    `queries.QuerySegmenter`, those that answer with a class per pixel from `pixels.PixelSegmenter`, those of
    transformers also from `from_hub.FromHub`.

    config: settings of a detectron2 YAML file; of INPUT, TEST and the loss, whatever the model is.
    class_layers: names of the layers with a row per class; the last row of each may be "no object" (`rows_behind`).
    unadapted: parts of names of layers that no adapter goes on.
    answered: names of the outputs that answers are made of, which is what an ONNX file gives.
    own_format: what `export` writes where no format is named.
    """

    class_layers: ClassVar[tuple[str, ...]]
    answered: ClassVar[tuple[str, ...]]
    own_format: ClassVar[str] = "folder"
    rows_behind: ClassVar[int] = 0
    unadapted: ClassVar[tuple[str, ...]] = ()
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: Config, network: nn.Module) -> None:
        super().__init__()
        self.config, self.network = config, network
        for name in ("pixel_mean", "pixel_std"):
            values = torch.tensor(config.MODEL[name.upper()]).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    # ---- forward, loss and answers -----------------------------------------------------------------------

    def forward(self, images: Tensor) -> Outputs:
        """What the other methods read, from images [B, 3, H, W] that `normalise` made."""
        raise NotImplementedError

    def frozen_part(self) -> tuple[nn.Module, ...]:
        """The modules that `features` runs; () where the model has no such part."""
        return ()

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """What the rest of the model reads of images [B, 3, H, W]: tensors [B, ...]."""
        raise NotImplementedError

    def from_features(self, features: Sequence[Tensor]) -> Outputs:
        """What `forward` gives for the images that these features are of."""
        raise NotImplementedError

    def part(self, outputs: Outputs, images: slice) -> Outputs:
        """The outputs of some images of the batch."""
        return {name: value[images] for name, value in outputs.items()}

    def graph_side(self) -> int:
        """Side of the square images that an ONNX file of it takes; 0 where any multiples of 32 will do."""
        return -(-self.config.INPUT.MIN_SIZE_TEST // 32) * 32

    def settle(self) -> None:
        """Before the model is traced: makes plain numbers of values that decide which way its forward pass goes."""

    def judge(self, outputs: Outputs, labels: Tensor) -> tuple[Tensor, list[Rows]]:
        """(supervised loss, mean over the batch; rows of each image's segments).

        Args:
            labels: [B, H, W] class ids, the ignore value where no class is, UNKNOWN where it is not told.

        Raises:
            UserError: an id that no class has.
        """
        raise NotImplementedError

    def rows(self, outputs: Outputs, labels: Tensor) -> list[Rows]:
        """Only the rows of `judge`, where the loss is not wanted."""
        return self.judge(outputs, labels)[1]

    def post_process(self, outputs: Outputs, index: int | slice, resize: Resize = lambda maps: maps) -> Tensor:
        """[K, h, w] score of every class at every pixel of one image, 0 or more; the answer is the largest. [B, K, h, w] of
        a slice of images, whose maps are not resized."""
        raise NotImplementedError

    def regions(self, outputs: Outputs, index: int, resize: Resize) -> Regions:
        """What is found in one image, whatever it is called."""
        raise NotImplementedError

    def normalise(self, images: Tensor) -> Tensor:
        """RGB images 0..255, [..., 3, H, W] of any type, as the model wants them."""
        images = images.to(self.pixel_mean)
        if self.config.INPUT.FORMAT == "BGR":
            images = images.flip(-3)
        return (images - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def segment(
        self,
        images: Tensor | Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        valid: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """The class id of every pixel, one [H, W] int64 tensor per image.

        Args:
            images: [B, 3, H, W] normalised, or a list of [3, H, W] of different sizes.
            sizes: (height, width) of each answer, the size of the original image.
            valid: (height, width) of the image inside each of `images` when they were padded at the bottom
                and right; the whole of it otherwise.
        """
        return [ids_at(scores, size) for scores, size in zip(segment(self, images, sizes, valid), sizes, strict=True)]

    # ---- classes and adapters ----------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Class rows, "no object" left out."""
        return self.get_submodule(self.class_layers[0]).weight.shape[0] - self.rows_behind

    def class_parameters(self) -> list[str]:
        """Names of the parameters with a row per class."""
        parameters = dict(self.named_parameters())
        names = [f"{layer}.{leaf}" for layer in self.class_layers for leaf in ("weight", "bias")]
        return [name for name in names if name in parameters]

    def set_rows(self, kept: Sequence[int], added: int = 0) -> None:
        """Keeps these rows of every class layer, in this order, with `added` new ones behind them; see
        `common.rows.set_rows`."""
        for layer in self.class_layers:
            set_rows(self.get_submodule(layer), kept, added, self.rows_behind)

    def adapter_targets(self) -> dict[str, list[str]]:
        """Position ("ffn", "attention") -> names of the layers that adapters go on."""
        return positions(self, self.unadapted)

    # ---- files -------------------------------------------------------------------------------------------

    def fresh(self) -> Segmenter:
        """A model of the same sizes with random weights."""
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """What stands beside its weights besides the config and class names, so that it can be built again."""
        return {}

    def export(self, path: Path, kind: str, names: Sequence[str]) -> Path:
        """Writes it with adapters merged, as one of the formats of `export.py`; the path.

        Args:
            names: of its class rows.

        Raises:
            UserError: a format that is not its own.
        """
        if kind != "folder":
            raise UserError(f"a {type(self).__name__} is not written as {kind}; give --to folder.")
        merged = adapters.merge(self)
        adapters.save_model(merged, path, {"classes": list(names)})
        save_config(path, merged, names)
        return path
