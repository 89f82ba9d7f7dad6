"""Models by name: timm ViTs, torchvision's vit_b_16, Face Transformers, a hybrid with a frozen stem, saved folders."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from torch import nn

from common import adapters
from common.bounded import Bounded
from common.domain import ClassTable
from common.errors import UserError, first_line
from common.record import write_json
from common.schema import read_json
from common.splits import shorten
from ks_classification.checkpoints.load import construct
from ks_classification.models import hub, layers
from ks_classification.models.args import check_args, check_name
from ks_classification.models.face import FaceTransformer
from ks_classification.models.hybrid import build_hybrid

HYBRID = "hybrid_mobilenetv2"
TORCHVISION = "torchvision/vit_b_16"
FACES: dict[str, dict[str, int]] = {"face_p8s8": {}, "face_p12s8": {"patch_size": 12, "overlap": 2}}
GIVEN = "given/"  # then the class of a model that was given as an object; nothing here can build it again
PUBLISHED = "published/"  # then the kind of `checkpoints.construct`: a model that a file described
HUB = "transformers/"  # then the model type
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RAW = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
STATISTICS = {"half": HALF, "imagenet": IMAGENET, "raw": RAW}
Three = Annotated[list[float], Meta(min_length=3, max_length=3)]


@dataclass
class ModelSpec:
    """Everything needed to build a model again.

    name:    timm model name, "torchvision/vit_b_16", "hybrid_mobilenetv2", "face_p8s8", "face_p12s8" or
             "published/<kind>", "transformers/<model_type>".
    args:    keyword arguments of the builder (img_size, patch_size, depth, embed_dim, ...).
    classes: class names in the order of the logit rows.
    mean, std: normalisation of pixels in 0..1, per channel.
    size:    side of the input in pixels.
    network: of a model of transformers, what `hub.build` takes.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    mean: Three = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: Three = field(default_factory=lambda: [0.5, 0.5, 0.5])
    size: Annotated[int, Meta(ge=1, le=8192)] = 224
    network: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ClassTable(tuple(self.classes))  # refuses a name of two rows
        if min(self.std) <= 0:
            raise UserError(
                f"the model's spec normalises by a standard deviation of {min(self.std):g}; give one above 0."
            )


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
        with Bounded(f"model {spec.name!r}"):
            return _build(spec, pretrained).eval()
    except (ArithmeticError, RuntimeError, TypeError, AssertionError, KeyError, ValueError) as error:
        raise UserError(f"cannot build model {spec.name!r} with {spec.args}: {first_line(error)}.") from None
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
        return build_hybrid(count, **args)
    if spec.name in FACES:
        args = {"image_size": args.pop("img_size", 112), **FACES[spec.name], **args}
        return FaceTransformer(count, **args)
    if spec.name.startswith(HUB):
        return hub.build(spec.network, count)
    if spec.name.startswith(PUBLISHED):
        return construct(spec.name.removeprefix(PUBLISHED), args | {"num_classes": count})
    import timm

    return timm.create_model(spec.name, pretrained=pretrained, num_classes=count, **args)


def save_folder(folder: str | Path, spec: ModelSpec) -> None:
    """Writes spec.json beside a model.safetensors, so that `load_folder` builds the model again."""
    write_json(Path(folder) / "spec.json", asdict(spec))


def load_folder(folder: str | Path) -> tuple[nn.Module, ModelSpec]:
    """(model, spec) of a folder that pretrain.py or a full-parameter method wrote.

    Raises:
        UserError: not such a folder, or damaged.
    """
    folder = Path(folder)
    if not (folder / "spec.json").exists():
        raise UserError(
            f"{folder} holds no model (spec.json is missing); name the model/ folder that pretrain.py wrote."
        )
    spec: ModelSpec = read_json(folder / "spec.json", ModelSpec, "name a model/ folder that is whole")
    model = build(spec)
    try:
        adapters.load_model(model, folder)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{folder / 'model.safetensors'} does not fit {spec.name}: {first_line(error)}") from None
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
        architecture, _, tag = name.partition(".")
        if tag and not timm.list_pretrained(name):
            tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
            raise UserError(f"timm has no weights {tag!r} of {architecture}; it has: {shorten(tags) or 'none'}.")
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
    rows = layers.classifier(model).weight.shape[0]
    if len(classes) != rows:
        raise UserError(
            f"the model has {rows} logit rows, class_names=[...] names {len(classes)}; name each row, in order."
        )
    known = getattr(model, "pretrained_cfg", None) or {}
    spec = ModelSpec(GIVEN + type(model).__name__, classes=list(classes))
    spec.mean, spec.std = list(known.get("mean", spec.mean)), list(known.get("std", spec.std))
    spec.size = size or known.get("input_size", (3, spec.size))[-1]
    return spec


def hub_spec(model: hub.HubClassifier, classes: Sequence[str], size: int = 0) -> ModelSpec:
    """The spec of a model of transformers, with its own normalisation and input size where it states them.

    Args:
        size: side of the input in pixels; 0 is the model's own.
    """
    network = hub.record(model, len(classes))
    spec = ModelSpec(HUB + network["config"].get("model_type", "timm_wrapper"), classes=list(classes), network=network)
    own, pixels = hub.view(model)
    if pixels is not None:
        spec.mean, spec.std = map(list, pixels)
    spec.size = size or own or spec.size
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
