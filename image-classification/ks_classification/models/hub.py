"""Classifiers of transformers: any that makes logits of images, and towers that get a linear head here."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common import hub
from common.errors import UserError
from common.record import write_bytes

HEAD = "head.safetensors"  # beside a tower: the rows that transformers has no place for
PROMPT = "a photo of a {}."  # Radford et al., 2021, arXiv:2103.00020, section 3.1.4


class HubClassifier(nn.Module):
    """A model of transformers whose classifier is one of its own layers.

    default_cfg: {"classifier": name of that layer}, as timm's models have it.
    unadapted: parts of names of layers that no adapter goes on.
    files: name -> content of what lies beside the model and goes into its exports.
    spare: beginnings of the names of parameters that a folder of a bare tower lacks.
    """

    spare: ClassVar[tuple[str, ...]] = ("classifier.",)
    unadapted: ClassVar[tuple[str, ...]] = ("vision_model.head.",)  # SigLIP's, which its classifiers pass by

    def __init__(self, network: Any, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.network, self.files = network, dict(files)
        inner = getattr(getattr(network, "timm_model", None), "default_cfg", {}).get("classifier")
        self.default_cfg = {"classifier": f"network.timm_model.{inner}" if inner else "network.classifier"}

    @classmethod
    def network_class(cls, kind: str) -> str:
        """The name of the transformers class for a model type. Raises UserError where there is none."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as known

        if kind not in known:
            raise UserError(f"transformers has no image classifier of the type {kind!r}.")
        name = known[kind]
        return name if isinstance(name, str) else name[0]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of normalised images [B, 3, S, S]."""
        return self.network(images).logits

    def class_rows(self, names: Sequence[str]) -> Tensor | None:
        """[N, D] start of the rows of new classes, where the model has one for a name."""
        return None

    def save(self, folder: Path, names: Sequence[str]) -> None:
        """Writes a folder that `from_pretrained` reads, and `--checkpoint`."""
        hub.save(self.network, folder, names, self.files)


class PatchClassifier(HubClassifier):
    """SigLIP 2, whose vision tower reads patches. Source: Tschannen et al., 2025, arXiv:2502.14786."""

    def forward(self, images: Tensor) -> Tensor:
        side = self.network.config.vision_config.patch_size
        patches = images.unfold(2, side, side).unfold(3, side, side)  # [B, 3, h, w, p, p]
        shape = torch.tensor(patches.shape[2:4], device=images.device).expand(len(images), 2)
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        mask = patches.new_ones(patches.shape[:2], dtype=torch.long)
        return self.network(patches, pixel_attention_mask=mask, spatial_shapes=shape).logits


class Tower(HubClassifier):
    """DINOv3: transformers has the tower alone, the head on its class token is ours. Source: arXiv:2508.10104."""

    bias: ClassVar[bool] = True
    tower_class: ClassVar[str] = "DINOv3ViTModel"

    def __init__(self, network: Any, files: Mapping[str, bytes], rows: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(network, files)
        self.default_cfg = {"classifier": "head"}
        if rows is None:
            rows = {"weight": torch.zeros(0, self.width(network))} | ({"bias": torch.zeros(0)} if self.bias else {})
        self.head = nn.Linear(rows["weight"].shape[1], 1, bias="bias" in rows)  # torch warns of layers without rows
        self.head.out_features = len(rows["weight"])
        for name, value in rows.items():
            setattr(self.head, name, nn.Parameter(value.clone()))

    @classmethod
    def network_class(cls, kind: str) -> str:
        return cls.tower_class

    @staticmethod
    def width(network: Any) -> int:
        """Values of an embedding."""
        return network.config.hidden_size

    def embed(self, images: Tensor) -> Tensor:
        """[B, D], what the head reads."""
        return self.network(images).pooler_output

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.embed(images))

    def whole(self) -> Any:
        """The network as transformers knows it."""
        return self.network

    def save(self, folder: Path, names: Sequence[str]) -> None:
        """The rows lie beside the tower, in `HEAD`."""
        hub.save(self.whole(), folder, names, self.files)
        rows = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        write_bytes(folder / HEAD, to_bytes(rows, metadata={"format": "pt"}))


class _Shared(tuple):
    """Modules that copies of a model have in common."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class Clip(Tower):
    """CLIP as a zero-shot classifier: a row is the text's embedding of a class name times the logit scale.

    The text tower stands outside the module tree, for nothing trains it.

    Source: Radford et al., 2021, arXiv:2103.00020.
    """

    bias = False
    tower_class = "CLIPModel"

    def __init__(self, network: Any, files: Mapping[str, bytes], rows: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(network, files, rows)
        self.text = _Shared((network.text_model, network.text_projection))
        del network.text_model, network.text_projection

    @staticmethod
    def width(network: Any) -> int:
        return network.config.projection_dim

    def embed(self, images: Tensor) -> Tensor:
        found = self.network.vision_model(pixel_values=images).pooler_output
        return F.normalize(self.network.visual_projection(found), dim=-1)

    @torch.no_grad()
    def class_rows(self, names: Sequence[str]) -> Tensor | None:
        """Raises UserError for a folder without a tokenizer."""
        words = _tokenizer(self.files)
        words.enable_padding(pad_id=words.token_to_id("<|endoftext|>") or 0)
        words.enable_truncation(self.text[0].config.max_position_embeddings)
        read = words.encode_batch([PROMPT.format(name.replace("_", " ")) for name in names])
        tokens, mask = (torch.tensor([getattr(one, part) for one in read]) for part in ("ids", "attention_mask"))
        tower, projection = self.text
        found = projection(tower(input_ids=tokens, attention_mask=mask).pooler_output)
        return F.normalize(found, dim=-1) * self.network.logit_scale.detach().cpu().exp()

    def whole(self) -> Any:
        network = copy.deepcopy(self.network)
        network.text_model, network.text_projection = self.text
        return network


def _tokenizer(files: Mapping[str, bytes]) -> Any:
    """The tokenizer of the files beside a CLIP. Raises UserError where there is none."""
    from tokenizers import Tokenizer

    if "tokenizer.json" not in files:
        raise UserError("CLIP's class rows come from class names: the folder needs its tokenizer.json.")
    with hub.one_line("tokenizer.json cannot be read"):
        return Tokenizer.from_str(files["tokenizer.json"].decode())


KINDS: dict[str, type[HubClassifier]] = {"siglip2": PatchClassifier, "dinov3_vit": Tower, "clip": Clip}


def load(folder: Path, bare: bool = False) -> tuple[HubClassifier, list[str]]:
    """(classifier in eval mode, names of its rows, [] where they are only numbered) of a folder of transformers.

    Args:
        bare: a tower without a classifier will do, and a config without weights.

    Raises:
        UserError: no classifier there, or weights that do not fit.
    """
    config = hub.read_config(folder)
    kind = KINDS.get(config.model_type, HubClassifier)
    name = kind.network_class(config.model_type)
    if bare and not hub.has_weights(folder):
        return kind(hub.build(name, config), hub.beside(folder)).eval(), []
    network = hub.load(name, folder, config, kind.spare if bare else ())
    if not issubclass(kind, Tower):
        return kind(network, hub.beside(folder)).eval(), hub.row_names(config)
    rows = None
    if (folder / HEAD).is_file():
        with hub.one_line(f"{folder / HEAD} cannot be read"):
            rows = from_bytes((folder / HEAD).read_bytes())
    model = kind(network, hub.beside(folder), rows).eval()
    if rows is None and not bare and not isinstance(model, Clip):
        raise UserError(f"{folder} holds a tower without a classifier ({HEAD} is missing); pretrain.py makes one.")
    return model, hub.row_names(config) if rows is not None else []


def record(model: HubClassifier, rows: int) -> dict[str, Any]:
    """What builds the like of it, for JSON: config and processor."""
    network = model.whole() if isinstance(model, Tower) else model.network
    config = hub.make_config(hub.plain_config(network.config), "the model")
    if len(config.id2label) != rows and not isinstance(model, Tower):
        config.num_labels = rows
    files = {name: content.decode() for name, content in model.files.items() if name in hub.BESIDE[:3]}
    return {"config": hub.plain_config(config), "files": files}


def build(table: Mapping[str, Any], rows: int) -> HubClassifier:
    """A classifier of a record with random weights."""
    config = hub.make_config(table.get("config", {}), "the record of the model")
    kind = KINDS.get(config.model_type, HubClassifier)
    files = {name: str(text).encode() for name, text in table.get("files", {}).items()}
    if not issubclass(kind, Tower):
        config.num_labels = rows
        return kind(hub.build(kind.network_class(config.model_type), config), files)
    network = hub.build(kind.network_class(config.model_type), config)
    head = nn.Linear(kind.width(network), rows, bias=kind.bias)
    return kind(network, files, head.state_dict())


def view(model: HubClassifier) -> tuple[int, tuple[list[float], list[float]] | None]:
    """(side of its images in pixels, 0 where nothing states it; mean and deviation of pixels)."""
    config, settings = model.network.config, hub.processor(model.files)
    timm = getattr(config, "pretrained_cfg", None) or {}
    crop = settings.get("crop_size") if settings.get("do_center_crop", True) else None
    vision = getattr(config, "vision_config", config)
    stated = (crop, settings.get("size"), (timm.get("input_size") or ())[1:], getattr(vision, "image_size", None))
    patches = getattr(vision, "num_patches", 0)  # of SigLIP 2, whose config states no size
    own = round(patches**0.5) * vision.patch_size if patches else 0
    side = next((found for found in map(hub.side, stated) if found), own)
    pixels = hub.statistics(settings)
    return side, pixels or ((timm["mean"], timm["std"]) if "mean" in timm else None)
