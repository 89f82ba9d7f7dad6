"""OneFormer of transformers, asked for semantic segmentation. Source: Jain et al., 2022, arXiv:2211.06220."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ks_segmentation.config.load import Config
from ks_segmentation.models.parts.from_hub import FromHub
from ks_segmentation.models.parts.queries import Queries, QuerySegmenter
from ks_segmentation.models.parts.watch import watched

TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)  # "the task is semantic" in tokens of CLIP, start and end included
DECODER = "network.model.transformer_module.decoder"


class OneFormer(FromHub, QuerySegmenter):
    """The contrastive loss between queries and texts is left out: class names of a swap come and go."""

    network_class = "OneFormerForUniversalSegmentation"
    class_layers = (f"{DECODER}.class_embed",)
    unadapted = ("mask_embed", "task_encoder", "text_mapper")

    def __init__(self, config: Config, network: nn.Module, files: dict[str, bytes]) -> None:
        super().__init__(config, network, files)
        network.model.is_training = False  # else it wants texts

    def queries(self, images: Tensor) -> Queries:
        decoder = self.get_submodule(DECODER)
        task = torch.zeros(len(images), self.network.config.task_seq_len, device=images.device)
        task[:, : len(TASK)] = torch.tensor(TASK, device=images.device)[: task.shape[1]]
        pixels = self.network.model.pixel_level_module
        with watched(decoder.class_embed, decoder.mask_embed, pixels) as (classes, masks, maps):
            self.network.model(images, task)
        features = maps.calls[0].output.decoder_last_feature
        return Queries(classes.inputs(), classes.outputs(), masks.outputs(), features)


SEGMENTER = OneFormer
