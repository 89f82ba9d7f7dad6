"""A detector of transformers behind the seam: its forward, its class rows, its adapters' places, its folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import adapters, hub, lora
from common.errors import UserError
from common.layers import channels_last, use_fast_linears
from common.lora.positions import positions
from ks_detection.data.transforms import MEAN, STD
from ks_detection.models.hub.config import HubConfig
from ks_detection.models.hub.criterion import PROPOSALS, TOKENS, HubCriterion, noised
from ks_detection.models.hub.families import HEADS
from ks_detection.models.hub.sampling import use_operator
from ks_detection.models.parts.detector import Detector
from ks_detection.models.parts.padding import Padded, pad_images

FORMATS = ("official", "official-half", "transformers")  # of which all are a folder for `from_pretrained`


class HubDetector(Detector):
    """`rf_detr`, `lw_detr`, `rt_detr_v2`, `d_fine`, `deimv2` or `deformable_detr` of the transformers library.

    network: the library's own model, with the compiled operator inside.
    beside: files that stood beside its weights, which an exported folder gets again.
    """

    config_type = HubConfig
    smooth = False

    def __init__(self, config: HubConfig, network: nn.Module | None = None) -> None:
        super().__init__(config)
        self.network = network or hub.build(config.family.kind, config.theirs())
        self.loss = self.network.loss_function
        self.network.loss_function = _hold
        self.beside: dict[str, bytes] = {}
        use_operator(self.network)
        use_fast_linears(self.network)

    @property
    def backbone(self) -> nn.Module:
        """The part that --freeze-backbone and --backbone-weights mean."""
        return self.network.model.backbone

    # ---- forward and loss --------------------------------------------------------------------------------

    def forward(self, images: list[Tensor] | Padded, targets: list[dict] | None = None) -> dict:
        """See `Detector`. `aux_outputs` also holds the groups of queries that only train, and the encoder's picks."""
        labels = None
        if targets is not None:
            labels = [{"class_labels": t["labels"], "boxes": t["boxes"].float()} for t in targets]
        found = self.network(**self.prepared(images), labels=labels)
        start = noised(found)
        main = {"pred_logits": found.logits[:, start:], "pred_boxes": found.pred_boxes[:, start:]}
        queries, call = found.last_hidden_state[:, start:], found.loss
        if call is None:
            return main | {"queries": queries, "aux_outputs": []}
        size = self.network.config.num_queries
        own, *more = _grouped(main["pred_logits"], main["pred_boxes"], size)
        return own | {"queries": queries[:, :size], "aux_outputs": more + self._others(call, size), "loss_call": call}

    def _others(self, call: dict[str, Any], size: int) -> list[dict]:
        """The outputs of the decoder layers before the last, and of the encoder, in groups of `size` queries."""
        dim, start, found = self.config.family.layer_dim, noised(call), []
        if call["outputs_class"] is not None:
            layers = (call[name].movedim(dim, 0)[:-1, :, start:] for name in ("outputs_class", "outputs_coord"))
            for logits, boxes in zip(*layers, strict=True):
                found += _grouped(logits, boxes, size)
        for logits, boxes in (PROPOSALS, TOKENS):
            if call.get(logits) is not None:
                found += _grouped(call[logits], call[boxes], size)
        return found

    def alike(self, images: Tensor) -> dict:
        mask = {"pixel_mask": torch.ones_like(images[:, 0], dtype=torch.long)} if self.config.family.padded else {}
        with hub.open_batch(self.network):
            found = self.network(pixel_values=channels_last(self._coloured(images)), **mask)
        return {"pred_logits": found.logits, "pred_boxes": found.pred_boxes}

    def graph_size(self, side: int) -> tuple[int, int]:
        cell = self.config.family.cells(self.network.config)
        return tuple(self.config.size or [-(-side // cell) * cell] * 2)

    def prepared(self, images: list[Tensor] | Padded) -> dict[str, Tensor]:
        """What the network is called with: images as it wants them, on one canvas.

        Families that read padding masks get padded images. For the others an image fills the canvas: the size that the
        folder states, or the largest height and width of the batch, rounded up to the cells of the network.
        """
        if isinstance(images, Padded):
            images = [pixels[:, ~mask[:, 0]][:, :, ~mask[0]] for pixels, mask in zip(*images, strict=True)]
        images = [self._coloured(image) for image in images]
        if self.config.family.padded:
            padded = pad_images(images)
            return {"pixel_values": channels_last(padded.pixels), "pixel_mask": (~padded.mask).long()}
        cell = self.config.family.cells(self.network.config)
        size = self.config.size or [-(-max(image.shape[i] for image in images) // cell) * cell for i in (1, 2)]
        whole = [
            image if image.shape[1:] == tuple(size) else F.interpolate(image[None], tuple(size), mode="bilinear")[0]
            for image in images
        ]
        return {"pixel_values": channels_last(torch.stack(whole))}

    def _coloured(self, image: Tensor) -> Tensor:
        """The image normalised as the network wants it, from ImageNet's statistics."""
        if (self.config.mean, self.config.std) == (MEAN, STD):
            return image
        mean, std, own, deviation = (
            image.new_tensor(v)[:, None, None] for v in (MEAN, STD, self.config.mean, self.config.std)
        )
        return (image * std + mean - own) / deviation

    def criterion(self) -> HubCriterion:
        return HubCriterion(self.config, self.loss, self.network.config)

    # ---- classes and adapters ----------------------------------------------------------------------------

    def heads(self) -> list[str]:
        every = self.named_modules(remove_duplicate=False)  # the decoder has the heads too
        return [n for n, m in every if isinstance(m, nn.Linear) and re.search(HEADS, n)]

    def label_embeddings(self) -> list[str]:
        name = self.config.family.labels
        return [f"network.{name}"] if name and self.network.config.num_denoising > 0 else []

    def class_parameters(self) -> list[str]:
        """Each once, under the name that saved weights have; not the head of proposals that know no classes."""
        by_id = {id(p): name for name, p in self.named_parameters()}
        found = dict.fromkeys(by_id[id(self.get_parameter(name))] for name in super().class_parameters())
        blind = (
            f"class_embed.{self.network.config.decoder_layers}."
            if getattr(self.network.config, "two_stage", False)
            else " "
        )
        return [name for name in found if blind not in name]

    def set_rows(self, kept: Sequence[int], added: int = 0) -> None:
        super().set_rows(kept, added)
        self.network.config.num_labels = self.config.num_classes
        self.config.network = hub.plain_config(self.network.config)

    def adapter_targets(self) -> dict[str, list[str]]:
        """Without the heads, and without blocks of a ViT behind the last one whose output is used."""
        used = getattr(self.network.config.backbone_config, "out_indices", None) or [sys.maxsize]

        def wanted(name: str) -> bool:
            block = re.search(r"\.backbone\.encoder\.layer\.(\d+)\.", name)
            return not re.search(HEADS, name) and not (block and int(block[1]) >= max(used))

        found = {place: [name for name in names if wanted(name)] for place, names in positions(self).items()}
        more = re.compile(self.config.family.ffn)
        found["ffn"] += [n for n, m in self.named_modules() if isinstance(m, nn.Linear) and more.search(n)]
        return found

    # ---- files -------------------------------------------------------------------------------------------

    def export(self, path: Path, kind: str) -> Path:
        """Writes config.json and weights as a folder that `from_pretrained` reads in a process without this package."""
        if kind not in FORMATS:
            raise UserError(
                f"a {self.config.network['model_type']} is written as {' or '.join(FORMATS)}, not as {kind}."
            )
        whole = adapters.merge(self) if lora.adapters(self) else self
        table, rows = whole.class_table, range(whole.config.num_classes)
        names = table.names if table else [f"LABEL_{row}" for row in rows]
        network = hub.build(whole.config.family.kind, whole.config.theirs())
        network.load_state_dict(whole.network.state_dict())
        hub.save(network.half() if kind == "official-half" else network, Path(path), names, self.beside)
        return Path(path)


def _hold(
    logits, labels, device, pred_boxes, config, outputs_class=None, outputs_coord=None, *encoder, **others
) -> tuple:
    """In the place of the loss: (what it is called with, no terms, None); `HubCriterion` calls it."""
    call = {"logits": logits, "pred_boxes": pred_boxes, "outputs_class": outputs_class, "outputs_coord": outputs_coord}
    return call | dict(zip(TOKENS, encoder, strict=False)) | others, {}, None


def _grouped(logits: Tensor, boxes: Tensor, size: int) -> list[dict]:
    """The outputs [B, groups * size, ...] of one layer as those of each group."""
    parts = zip(logits.split(size, 1), boxes.split(size, 1), strict=True)
    return [{"pred_logits": own, "pred_boxes": places} for own, places in parts]


DETECTOR = HubDetector
