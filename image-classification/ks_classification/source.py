"""The flags that name model and data, and the pretrained model that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from common import adapters, hub, lora
from common.config import flag
from common.errors import UserError
from common.knobs import Checked, knob
from common.splits import every_row, read_list, stated_rows
from ks_classification.checkpoints.load import load_checkpoint
from ks_classification.data import imagenet
from ks_classification.data import images as data
from ks_classification.models import build, layers
from ks_classification.models import hub as hub_models
from ks_classification.models.build import ModelSpec


@dataclass
class SourceConfig(Checked):
    """Model and data."""

    data: str = knob("digits", "images of the base classes: a folder with train/<class>/ and test/<class>/, several separated "
                          "by commas, hf:<folder>, cifar10, cifar100, or digits")  # fmt: skip
    learn_data: str = knob("", "images of the classes to be learned; default --data")
    data_classes: str = knob("", "names of the labels of Dataset objects given from Python, in order")
    checkpoint: str = knob("", "pretrained model: a run of pretrain.py or swap.py, or a published .pth, .bin, .npz")
    class_names: str = knob("", "names of a checkpoint's logit rows, in order: a,b,c or @file")
    model: str = knob(
        "",
        "model by name where there is no checkpoint: any timm ViT, torchvision/vit_b_16, face_p8s8, "
        "face_p12s8, hybrid_mobilenetv2; or one of transformers with its weights: hf:FOLDER, hf:NAME",
    )
    model_args: str = knob("", "arguments of the model: 'depth=6,embed_dim=192'")
    img_size: int = knob(0, "side of the input in pixels; 0 is the model's own", least=0, most=8192)
    patch_size: int = knob(0, "side of a patch in pixels; 0 is the model's own", least=0, most=8192)
    face_head: str = knob(
        "",
        "head of a Face Transformer; empty is cosface, or softmax where a checkpoint's head has a bias",
        ["", "softmax", "cosface", "arcface", "sface"],
    )
    lora_merged: bool = knob(False, "the checkpoint's weights contain its adapter already (GS-LoRA's task files)")
    normalize: str = knob(
        "auto",
        "pixel statistics: half (0.5 and 0.5), imagenet or raw (0..1); auto is what the model's kind uses",
        ["auto", *build.STATISTICS],
    )
    narrow_head: bool = knob(
        False, "keep only those of the checkpoint's logit rows whose classes --data has (ImageNet100)"
    )
    stem_weights: str = knob("", "torchvision mobilenet_v2 state dict for the hybrid's stem, or random")
    pretrained: bool = knob(False, "fetch the weights that timm or torchvision publish for --model")
    head_rows: int = knob(
        0, "logit rows in all, at least; more than there are classes stay unused (published: 200)", least=0, most=2**18
    )
    dropout: float = knob(0.0, "dropout after the position embedding and in FFNs (published: 0.1)", least=0, below=1)
    cache_dir: str = knob("data", "where CIFAR is kept")


def spec_from(config: SourceConfig, classes: Sequence[str]) -> ModelSpec:
    """The spec of a model by name, with the sizes that the flags state."""
    if not config.model:
        raise UserError("which model? Give --checkpoint, or --model with a timm name such as vit_base_patch16_224.")
    args = build.parse_args(config.model_args)
    for name in ("img_size", "patch_size"):
        if getattr(config, name):
            args[name] = getattr(config, name)
    if config.face_head and config.model not in build.FACES:
        raise UserError(f"`--face-head` is for {' and '.join(build.FACES)}, not for {config.model}.")
    if config.face_head:
        args["head"] = config.face_head
    spec = build.spec_of(config.model, args, classes)
    return normalized(spec, config)


def normalized(spec: ModelSpec, config: SourceConfig) -> ModelSpec:
    """The spec with the pixel statistics of --normalize."""
    if config.normalize != "auto":
        spec.mean, spec.std = build.STATISTICS[config.normalize].values()
    return spec


def base_model(config: SourceConfig, images: data.ImageSet, fetch: bool = True) -> tuple[nn.Module, ModelSpec]:
    """The pretrained model and its spec: a folder of ours or of transformers, a published file, or weights by name.

    Args:
        fetch: whether `--model hf:NAME` may be downloaded.

    Raises:
        UserError: nothing to load, or its rows cannot be named.
    """
    path = Path(config.checkpoint)
    if hub.is_hub(config.model) or (config.checkpoint and hub.is_folder(path)):
        model, spec = _pretrained_hub(config, images, fetch)
    elif config.checkpoint and path.is_dir():
        check_folder_flags(config)
        model, spec = build.load_folder(path / "model" if (path / "model").is_dir() else path)
    elif config.checkpoint:
        model, spec = _published(config, images)
    elif config.pretrained:
        spec = spec_from(config, [])
        spec.classes = every_row([], build.published_rows(spec.name))
        model = build.build(spec, pretrained=True)
        spec.classes = name_rows(len(spec.classes), config, images)
    else:
        raise UserError(
            "a swap starts from a pretrained model: give --checkpoint, or --model and --pretrained to fetch weights (a run's "
            "record of --pretrained is not followed)."
        )
    if config.narrow_head:
        narrow(model, spec, images)
    return model, spec


def _pretrained_hub(config: SourceConfig, images: data.ImageSet, fetch: bool) -> tuple[nn.Module, ModelSpec]:
    """The model of --model hf:..., or of a folder of transformers that --checkpoint names."""
    if config.model and config.checkpoint:
        raise UserError(f"`--model {config.model}` names model and weights; leave --checkpoint out.")
    folder = hub.folder_of(config.model or config.checkpoint, fetch)
    model, names = hub_models.load(folder)
    rows = layers.classifier(model).weight.shape[0]
    if rows == 0:  # CLIP: its rows are made of names
        names = read_list(config.class_names) or list(images.classes)
        if not names:
            raise UserError(f"which classes shall {folder} know? Give --class-names a,b,c or @file.")
        layers.widen(model, len(names), names=names)
    elif config.class_names or not names:
        names = name_rows(rows, config, images)
    return model, normalized(build.hub_spec(model, names, config.img_size), config)


def from_hub(config: SourceConfig, classes: Sequence[str]) -> tuple[nn.Module, ModelSpec]:
    """A model of --model hf:... for training: its weights where the folder has some, and new rows for `classes`."""
    model, _ = hub_models.load(hub.folder_of(config.model), bare=True)
    layers.select_rows(model, [])
    layers.widen(model, len(classes), names=list(classes))
    return model, normalized(build.hub_spec(model, classes, config.img_size), config)


def check_folder_flags(config: SourceConfig, allowed: Sequence[str] = ()) -> None:
    """Raises UserError for flags that have no effect on a folder, which says itself how its model is built."""
    for name in (
        "model",
        "model_args",
        "img_size",
        "patch_size",
        "face_head",
        "lora_merged",
        "class_names",
        "pretrained",
    ):
        if getattr(config, name) and name not in allowed:
            raise UserError(
                f"`{flag(name)}` has no effect on the folder {config.checkpoint}, which has its own; leave it out."
            )


def narrow(model: nn.Module, spec: ModelSpec, images: data.ImageSet) -> None:
    """Keeps the logit rows whose classes the images show. Raises UserError where there is none."""
    rows = [i for i, name in enumerate(spec.classes) if name in images.classes]
    if not rows:
        raise UserError("`--narrow-head`: no logit row is named like a class of --data; see --class-names.")
    layers.select_rows(model, rows)
    spec.classes = [spec.classes[i] for i in rows]


def _published(config: SourceConfig, images: data.ImageSet) -> tuple[nn.Module, ModelSpec]:
    """A model from somebody's file: ViT-pytorch, timm, torchvision, .npz or Face Transformer."""
    args = build.parse_args(config.model_args)
    if set(args) - {"num_heads"}:
        raise UserError("`--model-args` of a checkpoint can only be num_heads=N; the rest is read from the file.")
    model = load_checkpoint(
        config.checkpoint, lora_merged=config.lora_merged, head=config.face_head or None,
        num_heads=args.get("num_heads"), image_size=config.img_size or None,
    )  # fmt: skip
    kind, arguments = model.architecture
    if not arguments["num_classes"]:
        raise UserError(
            f"{config.checkpoint} holds no classifier, only embeddings; pretrain one on it or name another."
        )
    if lora.adapters(model):
        model = adapters.merge(model)  # a published swap is a base like any other
    table = model.class_table
    names = (
        list(table.names) if table and not config.class_names else name_rows(arguments["num_classes"], config, images)
    )
    statistics = {"face": build.RAW, "torchvision": build.IMAGENET, "timm": build.HALF}[kind]
    arguments = {k: v for k, v in arguments.items() if k != "num_classes"}
    size = arguments.get("image_size") or arguments["img_size"]
    return model, normalized(ModelSpec(build.PUBLISHED + kind, arguments, names, **statistics, size=size), config)


def name_rows(rows: int, config: SourceConfig, images: data.ImageSet) -> list[str]:
    """Names of a published checkpoint's logit rows: from --class-names, from folder names, or the data's classes.

    Folder names state rows (see `data.folders`), are ImageNet classes (see `imagenet`), or are as many as there are
    rows and in the rows' order. Rows without a name are called row_17 and the like.

    Raises:
        UserError: it is not known which class stands in which row.
    """
    names: Sequence[str] | None = None
    if config.class_names:
        names = stated_rows(config.class_names, rows)
    elif images.rows:
        if max(images.rows.values()) >= rows:
            raise UserError(
                f"a folder of {config.data} states logit row {max(images.rows.values())}, but the checkpoint has {rows}."
            )
        by_row = {row: name for name, row in images.rows.items()}
        names = [by_row.get(i, f"row_{i}") for i in range(rows)]
    else:
        names = imagenet.row_names(rows, images.classes)
    if names is None and images.classes and len(images.classes) != rows:
        raise UserError(
            f"the checkpoint has {rows} logit rows and {config.data} {len(images.classes)} classes, so that it is not "
            "known which row is which class; name all rows in order with --class-names @file, or call the folders "
            "<row>_<WordNet id>, such as 217_n02102040."
        )
    return every_row(images.classes if names is None else names, rows)
