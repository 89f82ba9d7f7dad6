"""Segmenters of transformers: read from a folder, written as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from common import adapters, hub
from ks_segmentation.config.load import Config, load_config
from ks_segmentation.models.parts.segmenter import Segmenter

SIDE = 512  # of test images in pixels, where no processor states it
SCALES = tuple(round(0.1 * step, 1) for step in range(5, 21))  # of training images, relative to test images
LOSS = {  # our setting -> what transformers calls it
    "CLASS_WEIGHT": ("class_weight", "cross_entropy_weight"), "MASK_WEIGHT": ("mask_weight",),
    "DICE_WEIGHT": ("dice_weight",), "NO_OBJECT_WEIGHT": ("no_object_weight",),
    "TRAIN_NUM_POINTS": ("train_num_points",), "OVERSAMPLE_RATIO": ("oversample_ratio",),
    "IMPORTANCE_SAMPLE_RATIO": ("importance_sample_ratio",),
}  # fmt: skip


class FromHub(Segmenter):
    """What a segmenter of transformers has besides; stands first among the bases.

    network_class: name of its class in transformers.
    files: name -> content of what lies beside it (processor, tokenizer) and goes into its exports.
    """

    network_class: ClassVar[str]
    own_format = "folder"

    def __init__(self, config: Config, network: nn.Module, files: Mapping[str, bytes]) -> None:
        super().__init__(config, network)
        self.files = dict(files)

    @classmethod
    def of(cls, network: nn.Module, files: Mapping[str, bytes], words: Sequence[Any]) -> FromHub:
        """One of a network that was made.

        Args:
            words: KEY, value, ... that win over what the model's own files say of sizes and pixels.
        """
        stated = [*settings(network.config, files), *cls.own_settings(network.config)]
        return cls(load_config(None, [*stated, *words]), network, files).eval()

    @classmethod
    def own_settings(cls, config: Any) -> list[Any]:
        """KEY, value, ... that this kind of model needs, from its transformers config."""
        return []

    def set_rows(self, kept: Sequence[int], added: int = 0) -> None:
        """Also sizes the class weights of transformers' own loss, which its files hold."""
        super().set_rows(kept, added)
        loss = getattr(self.network, "criterion", None)
        if loss is not None and hasattr(loss, "empty_weight"):
            weight = loss.empty_weight.new_ones(self.num_classes + 1)
            weight[-1] = loss.empty_weight[-1]
            loss.empty_weight = weight

    def fresh(self) -> FromHub:
        network = hub.build(self.network_class, self._config())
        return type(self)(self.config, network, self.files).eval()

    def _config(self) -> Any:
        """A copy of the network's config with as many labels as it has class rows."""
        made = hub.make_config(hub.plain_config(self.network.config), "the model")
        if len(made.id2label) != self.num_classes:
            made.num_labels = self.num_classes
        return made

    def record(self) -> dict[str, Any]:
        texts = {name: content.decode() for name, content in self.files.items() if name == hub.BESIDE[0]}
        config = self._config()
        return {"modelname": config.model_type, "network": hub.plain_config(config), "files": texts}

    def export(self, path: Path, kind: str, names: Sequence[str]) -> Path:
        """A folder that `from_pretrained` reads, and `--checkpoint`."""
        if kind != "folder":
            return super().export(path, kind, names)
        hub.save(adapters.merge(self).network, path, names, self.files)
        return path


def settings(config: Any, files: Mapping[str, bytes]) -> list[Any]:
    """KEY, value, ... of what a transformers config and its processor say of pixels, sizes and the loss."""
    found: dict[str, Any] = {"INPUT.COLOR_AUG_SSD": True}
    processor = hub.processor(files)
    pixels = hub.statistics(processor)
    if pixels:
        for key, values in zip(("PIXEL_MEAN", "PIXEL_STD"), pixels, strict=True):
            found[f"MODEL.{key}"] = [255 * value for value in values]
    side = hub.side(processor.get("size")) or SIDE
    found |= {"INPUT.MIN_SIZE_TEST": side, "INPUT.MAX_SIZE_TEST": 4 * side, "INPUT.MAX_SIZE_TRAIN": 4 * side}
    found |= {"INPUT.MIN_SIZE_TRAIN": [round(side * scale) for scale in SCALES], "INPUT.CROP.SIZE": [side, side]}
    for ours, names in LOSS.items():
        stated = [getattr(config, name) for name in names if hasattr(config, name)]
        found |= {f"MODEL.MASK_FORMER.{ours}": stated[0]} if stated else {}
    return [part for pair in found.items() for part in pair]
