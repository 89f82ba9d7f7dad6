"""Models by name: timm ViTs, torchvision's vit_b_16, Face Transformers, a hybrid with a frozen stem, saved folders."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from ks_classification.model_args import check_args, check_name

HYBRID = "hybrid_mobilenetv2"
TORCHVISION = "torchvision/vit_b_16"
FACES: dict[str, dict[str, int]] = {"face_p8s8": {}, "face_p12s8": {"patch_size": 12, "overlap": 2}}
GIVEN = "given/"  # then the class of a model that was given as an object; nothing here can build it again
PUBLISHED = "published/"  # then the kind of `checkpoints.construct`: a model that a file described
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RAW = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
STATISTICS = {"half": HALF, "imagenet": IMAGENET, "raw": RAW}


@dataclass
class ModelSpec:
    """Everything needed to build a model again.

    name:    timm model name, "torchvision/vit_b_16", "hybrid_mobilenetv2", "face_p8s8", "face_p12s8" or
             "published/<kind>".
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
    """'depth=6,embed_dim=192' -> {"depth": 6, "embed_dim": 192}. Raises UserError for what is no size or switch."""
    result: dict[str, Any] = {}
    for piece in filter(None, (p.strip() for p in text.split(","))):
        key, sign, value = piece.partition("=")
        if not sign:
            raise UserError(f"`--model-args` takes name=value pairs separated by commas, got {piece!r}.")
        try:
            result[key] = json.loads(value)
        except json.JSONDecodeError:
            result[key] = value
    check_args(result, "`--model-args`")
    return result


def build(spec: ModelSpec, pretrained: bool = False) -> nn.Module:
    """The model of a spec with one logit row per class, in eval mode.

    Args:
        pretrained: take the weights that timm or torchvision publish for this name (downloads them).

    Raises:
        UserError: unknown name or arguments, or such as would fetch, open or run something.
    """
    check_name(spec.name)
    check_args(spec.args, f"model {spec.name!r}")
    try:
        return _build(spec, pretrained).eval()
    except (RuntimeError, TypeError, AssertionError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0].strip() if str(error) else type(error).__name__
        raise UserError(f"cannot build model {spec.name!r} with {spec.args}: {reason}.") from None
    except OSError as error:
        raise UserError(f"cannot fetch weights for {spec.name!r}: {error}; give --checkpoint instead.") from None


def _build(spec: ModelSpec, pretrained: bool) -> nn.Module:
    count, args = len(spec.classes), dict(spec.args)
    if pretrained and (spec.name in (HYBRID, *FACES) or spec.name.startswith(PUBLISHED)):
        raise UserError(f"nobody publishes weights for {spec.name!r} by name; give --checkpoint.")
    if spec.name.startswith(GIVEN):
        raise UserError(f"the base model was a {spec.name.removeprefix(GIVEN)} given from Python; give it to load_run.")
    if spec.name == TORCHVISION:
        from torchvision.models import vit_b_16

        model = vit_b_16(weights="IMAGENET1K_V1" if pretrained else None, image_size=args.get("img_size", 224))
        if count != model.heads.head.out_features:
            model.heads.head = nn.Linear(model.heads.head.in_features, count)
        return model
    if spec.name == HYBRID:
        from ks_classification.hybrid import build_hybrid

        return build_hybrid(count, **args)
    if spec.name in FACES:
        from ks_classification.face import FaceTransformer

        args = {"image_size": args.pop("img_size", 112), **FACES[spec.name], **args}
        return FaceTransformer(count, **args)
    if spec.name.startswith(PUBLISHED):
        from ks_classification.checkpoints import construct

        return construct(spec.name.removeprefix(PUBLISHED), args | {"num_classes": count})
    import timm

    return timm.create_model(spec.name, pretrained=pretrained, num_classes=count, **args)


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


def classifier(model: nn.Module) -> nn.Module:
    """The layer that makes logits (see `classifier_name`)."""
    return model.get_submodule(classifier_name(model))


def forward(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [B, C], embedding [B, D]) of one forward pass; the embedding is what the classifier reads.

    A Face Transformer answers with the embedding itself; its logits are those without margin.
    """
    head = classifier(model)
    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    try:
        out = model(images)
    finally:
        hook.remove()
    return (out, caught[0]) if caught else (head(out), out)


def ffn_names(model: nn.Module) -> list[str]:
    """The two linear layers of every Transformer block's FFN."""
    pattern = re.compile(r"(^|\.)(mlp\.(fc1|fc2|0|3)|ffn\.(fc1|fc2)|net\.(0|3)|linear[12]|fc[12])$")
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and pattern.search(n)]


def attention_names(model: nn.Module) -> list[str]:
    """The projections of every attention layer, or the nn.MultiheadAttention modules themselves."""
    pattern = re.compile(r"((attn|attention)\.(qkv|proj|query|key|value|out)|to_qkv|to_out\.0)$")
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
    _note_rows(model, old, count)
    return model


@torch.no_grad()
def select_rows(model: nn.Module, rows: Sequence[int]) -> nn.Module:
    """Leaves the classifier these logit rows only, in this order (ImageNet100 on a 1000-way model)."""
    head = classifier(model)
    for name, parameter in list(head.named_parameters(recurse=False)):
        setattr(head, name, nn.Parameter(parameter[list(rows)].clone(), requires_grad=parameter.requires_grad))
    _note_rows(model, head, len(rows))
    return model


def _note_rows(model: nn.Module, head: nn.Module, count: int) -> None:
    for module, names in ((head, ("out_features", "num_classes")), (model, ("num_classes",))):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, count)


def set_dropout(model: nn.Module, p: float) -> None:
    """Sets the dropout behind the position embedding and in the FFNs of a ViT; 0 leaves the model as built."""
    if not p:
        return
    pattern = re.compile(r"(^pos_drop|mlp\.drop[12]?|^dropout|encoder\.dropout|mlp\.[24]|net\.[24]|to_out\.1)$")
    layers = [m for n, m in model.named_modules() if pattern.search(n) and isinstance(m, nn.Dropout)]
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


def spec_of(name: str, args: dict[str, Any], classes: Sequence[str]) -> ModelSpec:
    """The spec of a model by name, with timm's own normalisation and input size where it states them.

    Raises:
        UserError: unknown name; says which are near it.
    """
    spec = ModelSpec(name, dict(args), list(classes))
    if name in FACES:
        spec.mean, spec.std, spec.size = *RAW.values(), 112
    elif name == TORCHVISION:
        spec.mean, spec.std = IMAGENET.values()
    elif name == HYBRID:
        spec.size = 128
    else:
        import timm

        if not timm.is_model(name):
            near = difflib.get_close_matches(name, [*FACES, HYBRID, TORCHVISION, *timm.list_models()], 5, 0.4)
            raise UserError(f"`--model {name}` is not known to timm; near it: {', '.join(near) or 'nothing'}.")
        known = timm.get_pretrained_cfg(name)
        if known is not None:
            spec.mean, spec.std, spec.size = list(known.mean), list(known.std), known.input_size[-1]
    spec.size = spec.args.get("img_size", spec.size)
    return spec


def given_spec(model: nn.Module, classes: Sequence[str], size: int) -> ModelSpec:
    """The spec of a model object: its rows' names, and timm's own normalisation and input size where it states them.

    Raises:
        UserError: not one name per row.
    """
    rows = classifier(model).weight.shape[0]
    if len(classes) != rows:
        raise UserError(
            f"the model has {rows} logit rows, class_names=[...] names {len(classes)}; name each row, in order."
        )
    known = getattr(model, "pretrained_cfg", None) or {}
    spec = ModelSpec(GIVEN + type(model).__name__, classes=list(classes))
    spec.mean, spec.std = list(known.get("mean", spec.mean)), list(known.get("std", spec.std))
    spec.size = size or known.get("input_size", (3, spec.size))[-1]
    return spec


def published_rows(name: str) -> int:
    """Logit rows of the weights that timm or torchvision publish for a model."""
    if name == TORCHVISION:
        return 1000
    import timm

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None or not known.num_classes:
        raise UserError(f"nobody publishes a classifier for {name!r}; give --checkpoint.")
    return known.num_classes
