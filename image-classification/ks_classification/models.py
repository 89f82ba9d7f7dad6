"""Models by name: timm ViTs, torchvision's vit_b_16, a hybrid with a frozen MobileNetV2 stem, saved folders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError

HYBRID = "hybrid_mobilenetv2"


@dataclass
class ModelSpec:
    """Everything needed to build a model again.

    name:    timm model name, "torchvision/vit_b_16", or "hybrid_mobilenetv2".
    args:    keyword arguments of the builder (img_size, patch_size, depth, embed_dim, ...).
    classes: class names in the order of the logit rows.
    mean, std: normalisation of pixels in 0..1, per channel.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    size: int = 224


def parse_args(text: str) -> dict[str, Any]:
    """'depth=6,embed_dim=192' -> {"depth": 6, "embed_dim": 192}."""
    result: dict[str, Any] = {}
    for piece in filter(None, (p.strip() for p in text.split(","))):
        key, sign, value = piece.partition("=")
        if not sign:
            raise UserError(f"`--model-args` takes name=value pairs separated by commas, got {piece!r}.")
        try:
            result[key] = json.loads(value)
        except json.JSONDecodeError:
            result[key] = value
    return result


def build(spec: ModelSpec, pretrained: bool = False) -> nn.Module:
    """The model of a spec with one logit row per class, in eval mode.

    Args:
        pretrained: take the weights that timm or torchvision publish for this name (downloads them).

    Raises:
        UserError: unknown name or arguments.
    """
    count = len(spec.classes)
    try:
        if spec.name == "torchvision/vit_b_16":
            import torchvision

            weights = "IMAGENET1K_V1" if pretrained else None
            model = torchvision.models.vit_b_16(weights=weights, image_size=spec.args.get("img_size", 224))
            model.heads.head = nn.Linear(model.heads.head.in_features, count)
        elif spec.name == HYBRID:
            from ks_classification.hybrid import build_hybrid

            model = build_hybrid(count, **spec.args)
        else:
            import timm

            model = timm.create_model(spec.name, pretrained=pretrained, num_classes=count, **spec.args)
    except (RuntimeError, TypeError, AssertionError, KeyError) as error:
        reason = str(error).splitlines()[0].strip() if str(error) else type(error).__name__
        raise UserError(f"cannot build model {spec.name!r} with {spec.args}: {reason}.") from None
    except OSError as error:
        raise UserError(f"cannot fetch weights for {spec.name!r}: {error}; give --checkpoint instead.") from None
    return model.eval()


def classifier_name(model: nn.Module) -> str:
    """Name of the last linear layer, the one that makes logits: 'head', 'fc', 'heads.head', ...

    Raises:
        UserError: the model has none.
    """
    name = getattr(model, "default_cfg", {}).get("classifier")
    if isinstance(name, str) and name and isinstance(model.get_submodule(name), nn.Module):
        return name
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or hasattr(m, "is_classifier")]
    if not names:
        raise UserError(f"{type(model).__name__} has no linear classifier.")
    return names[-1]


def forward(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [B, C], embedding [B, D]) of one forward pass; the embedding is what the classifier reads."""
    head = model.get_submodule(classifier_name(model))
    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    try:
        logits = model(images)
    finally:
        hook.remove()
    return logits, caught[0]


def ffn_names(model: nn.Module) -> list[str]:
    """The two linear layers of every Transformer block's FFN."""
    pattern = re.compile(r"(^|\.)(mlp\.(fc1|fc2|0|3)|ffn\.(fc1|fc2)|net\.(0|3)|linear[12]|fc[12])$")
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and pattern.search(n)]


def attention_names(model: nn.Module) -> list[str]:
    """The projections of every attention layer, or the nn.MultiheadAttention modules themselves."""
    pattern = re.compile(r"(attn|attention)\.(qkv|proj|to_qkv|query|key|value|out)$")
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.Linear) and pattern.search(name)):
            found.append(name)
    return found


@torch.no_grad()
def widen(model: nn.Module, count: int, seed: int = 0) -> nn.Module:
    """Gives the classifier `count` logit rows: old rows are kept, new ones xavier-uniform with zero bias.

    Raises:
        UserError: the model has more rows than that.
    """
    name = classifier_name(model)
    old = model.get_submodule(name)
    rows = old.weight.shape[0]
    if rows > count:
        raise UserError(f"the model has {rows} logit rows, but only {count} classes are named.")
    if rows == count:
        return model
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.empty(count - rows, old.weight.shape[1])
    nn.init.xavier_uniform_(fresh, generator=generator)
    weight = torch.cat([old.weight.float().cpu(), fresh])
    old.weight = nn.Parameter(weight.to(old.weight), requires_grad=old.weight.requires_grad)
    if getattr(old, "bias", None) is not None:
        bias = torch.zeros(count)
        bias[:rows] = old.bias
        old.bias = nn.Parameter(bias.to(old.weight), requires_grad=old.bias.requires_grad)
    for attribute in ("out_features", "num_classes"):
        if hasattr(old, attribute):
            setattr(old, attribute, count)
    if hasattr(model, "num_classes"):
        model.num_classes = count
    return model


def set_dropout(model: nn.Module, p: float) -> None:
    """Sets the dropout after the position embedding and in the FFNs of a timm ViT; 0 leaves the model as built."""
    if not p:
        return
    found = [m for n, m in model.named_modules() if re.search(r"(^pos_drop|mlp\.drop[12]?)$", n)]
    layers = [m for m in found if isinstance(m, nn.Dropout)]
    if not layers:
        raise UserError(f"{type(model).__name__} has no dropout layers to set; leave out --dropout.")
    for layer in layers:
        layer.p = p


def save_folder(folder: str | Path, spec: ModelSpec) -> None:
    """Writes spec.json beside a model.safetensors, so that `load_folder` builds the model again."""
    from common.record import write_json

    write_json(Path(folder) / "spec.json", asdict(spec))


def load_folder(folder: str | Path) -> tuple[nn.Module, ModelSpec]:
    """(model, spec) of a folder that pretrain.py or a full-parameter method wrote.

    Raises:
        UserError: not such a folder, or damaged.
    """
    from common import adapters
    from common.record import read_json

    folder = Path(folder)
    if not (folder / "spec.json").exists():
        raise UserError(
            f"{folder} holds no model (spec.json is missing); name the model/ folder that pretrain.py wrote."
        )
    try:
        spec = ModelSpec(**read_json(folder / "spec.json"))
    except TypeError:
        raise UserError(f"{folder / 'spec.json'} is damaged.") from None
    model = build(spec)
    try:
        adapters.load_model(model, folder)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder / 'model.safetensors'} does not fit {spec.name}: {str(error).splitlines()[0]}"
        ) from None
    return model, spec


def spec_of(args_name: str, args: dict[str, Any], classes: Sequence[str]) -> ModelSpec:
    """The spec of a model by name, with timm's own normalisation and input size where it states them."""
    spec = ModelSpec(args_name, dict(args), list(classes))
    if args_name not in (HYBRID, "torchvision/vit_b_16"):
        import timm

        if not timm.is_model(args_name):
            near = timm.list_models(f"*{args_name.split('_')[0]}*")[:5]
            raise UserError(f"`--model {args_name}` is not known to timm; near it: {', '.join(near) or 'nothing'}.")
        known = timm.get_pretrained_cfg(args_name)
        if known is not None:
            spec.mean, spec.std, spec.size = list(known.mean), list(known.std), known.input_size[-1]
    elif args_name == "torchvision/vit_b_16":
        spec.mean, spec.std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    spec.size = spec.args.get("img_size", spec.size)
    return spec
