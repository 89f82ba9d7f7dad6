"""Mask2Former for semantic segmentation: one forward for training and inference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.bounded import Bounded
from common.layers import channels_last, use_fast_linears
from ks_segmentation.checkpoints.export import export_detectron2
from ks_segmentation.config.load import Config, load_config
from ks_segmentation.models.mask2former import architecture
from ks_segmentation.models.mask2former.pixel_decoder import PixelFeatures, pixel_features
from ks_segmentation.models.mask2former.query_decoder import decode
from ks_segmentation.models.parts.from_hub import FromHub
from ks_segmentation.models.parts.queries import Queries, QuerySegmenter
from ks_segmentation.models.parts.segmenter import Outputs, Segmenter


class Mask2Former(QuerySegmenter):
    """transformers' Mask2Former modules with our forward, compiled attention and inference.

    Args:
        config: settings of a detectron2 YAML file.
        network: transformers' Mask2FormerForUniversalSegmentation of the same sizes.
    """

    class_layers = ("network.class_predictor",)
    own_format = "detectron2"

    def queries(self, images: Tensor) -> Queries:
        """What the queries see, in training mode too, from images whose sides are best multiples of 32."""
        return self._answer(self._pixels(images))

    def _pixels(self, images: Tensor) -> PixelFeatures:
        module = self.network.model.pixel_level_module
        maps = module.encoder(images)
        features = maps if isinstance(maps, list) else list(maps.feature_maps)  # of transformers' backbones
        return pixel_features(module.decoder, features)

    def _answer(self, pixels: PixelFeatures) -> Queries:
        decoded = decode(self.network.model.transformer_module, pixels)
        logits = self.network.class_predictor(decoded.states)
        return Queries(decoded.states, logits, decoded.mask_embeddings, pixels.mask_features)

    def frozen_part(self) -> tuple[nn.Module, ...]:
        return (self.network.model.pixel_level_module,)

    def features(self, images: Tensor) -> list[Tensor]:
        pixels = self._pixels(channels_last(images))
        return [*pixels.levels, pixels.mask_features]

    def from_features(self, features: Sequence[Tensor]) -> Outputs:
        *levels, mask_features = features
        return self.outputs(self._answer(PixelFeatures(levels, mask_features)))

    def graph_side(self) -> int:
        """A Swin's windows are cut for one size."""
        return super().graph_side() if self.config.MODEL.BACKBONE.NAME == "D2SwinTransformer" else 0

    def fresh(self) -> Mask2Former:
        return build_mask2former(self.config)

    def export(self, path: Path, kind: str, names: Sequence[str]) -> Path:
        return export_detectron2(self, path) if kind == "detectron2" else super().export(path, kind, names)


class HubMask2Former(FromHub, Mask2Former):
    """The same from a folder of transformers."""

    network_class = "Mask2FormerForUniversalSegmentation"

    def graph_side(self) -> int:
        return Segmenter.graph_side(self)

    def __init__(self, config: Config, network: nn.Module, files: dict[str, bytes]) -> None:
        super().__init__(config, network, files)
        use_fast_linears(network)


SEGMENTER = HubMask2Former


def build_mask2former(config_file: str | Path | Config, overrides: Sequence[Any] = ()) -> nn.Module:
    """A Mask2Former with random weights, as the detectron2 YAML file says.

    `model(images)` with normalised images [B, 3, H, W] gives `pred_logits` [B, Q, K + 1] (the last column is
    "no object") and `pred_masks` [B, Q, H / 4, W / 4]; `model.segment(images, sizes)` gives class ids.

    Args:
        config_file: a .yaml file, or settings that `load_config` made of one.
        overrides: "KEY", value, "KEY", value, ...

    Raises:
        UserError: see `load_config`; or the config asks for another architecture.
    """
    config = config_file if isinstance(config_file, Config) else load_config(config_file, overrides)
    architecture.check(config)
    with Bounded("the segmenter's config"):
        return Mask2Former(config, architecture.network(config))
