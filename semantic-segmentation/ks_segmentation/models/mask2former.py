"""Mask2Former for semantic segmentation: one forward for training and inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ks_segmentation.config.load import Config
from ks_segmentation.models.inference import ids_at, segment
from ks_segmentation.models.pixel_decoder import pixel_features
from ks_segmentation.models.query_decoder import decode, masks_of


class Mask2Former(nn.Module):
    """transformers' Mask2Former modules with our forward, compiled attention and inference.

    Args:
        config: settings of a detectron2 YAML file.
        network: transformers' Mask2FormerForUniversalSegmentation of the same sizes.
    """

    def __init__(self, config: Config, network: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.num_classes = config.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        mean, std = config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What the queries see, in training mode too.

        Args:
            images: [B, 3, H, W], normalised (`normalise`), H and W best multiples of 32.

        Returns:
            pred_logits: [B, Q, K + 1], the last column "no object".
            pred_masks: [B, Q, H / 4, W / 4] logits.
            embedding: [B, Q, C], what the class layer reads.
            logits: [L, B, Q, K + 1] after each of the L outputs, the last being `pred_logits`.
            mask_embeddings: [L, B, Q, C] and mask_features: [B, C, H / 4, W / 4]; their product is the masks.
        """
        model = self.network.model
        maps = model.pixel_level_module.encoder(images)
        features = maps if isinstance(maps, list) else list(maps.feature_maps)  # of transformers' backbones
        pixels = pixel_features(model.pixel_level_module.decoder, features)
        decoded = decode(model.transformer_module, pixels)
        logits = self.network.class_predictor(decoded.states)
        return {
            "pred_logits": logits[-1],
            "pred_masks": masks_of(decoded.mask_embeddings[-1], pixels.mask_features),
            "embedding": decoded.states[-1],
            "logits": logits,
            "mask_embeddings": decoded.mask_embeddings,
            "mask_features": pixels.mask_features,
        }

    def normalise(self, images: Tensor) -> Tensor:
        """RGB images 0..255, [..., 3, H, W] of any type, as the model wants them."""
        images = images.to(self.pixel_mean)
        if self.config.INPUT.FORMAT == "BGR":
            images = images.flip(-3)
        return (images - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Gives the class layer rows for `count` classes: old ones stay in front, "no object" stays the last,
        rows in between start as the mean of the old ones and say nothing in particular."""
        old = self.network.class_predictor
        new = type(old)(old.in_features, count + 1).to(old.weight)
        added = count - self.num_classes
        for name in ("weight", "bias"):
            rows = getattr(old, name)
            middle = rows[:-1].mean(0, keepdim=True).expand(added, *rows.shape[1:])
            getattr(new, name).copy_(torch.cat([rows[:-1], middle, rows[-1:]]))
        self.network.class_predictor, self.num_classes = new, count

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
