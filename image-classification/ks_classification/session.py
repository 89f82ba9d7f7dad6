"""From flags to a domain and a plan: what swap.py, pretrain.py, evaluate.py and predict.py share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from common import adapters, lora
from common.errors import UserError
from common.lora import LoraConfig
from common.plan import Plan, PlanConfig, check_order, plan_from
from common.record import read_json
from common.splits import read_list
from ks_classification import data, imagenet, models
from ks_classification.domain import ClassificationDomain, ImageConfig
from ks_classification.models import ModelSpec


@dataclass
class SourceConfig:
    """Model and data."""

    data: str = field(
        default="digits",
        metadata={"help": "images of the base classes: a folder with train/<class>/ and test/<class>/, several separated "
                          "by commas, hf:<folder>, cifar10, cifar100, or digits"},
    )  # fmt: skip
    learn_data: str = field(default="", metadata={"help": "images of the classes to be learned; default --data"})
    checkpoint: str = field(
        default="",
        metadata={"help": "pretrained model: a run of pretrain.py or swap.py, or a published .pth, .bin, .npz"},
    )
    class_names: str = field(
        default="",
        metadata={
            "help": "names of a published checkpoint's logit rows, in order: a,b,c or @file; ImageNet's need none"
        },
    )
    model: str = field(
        default="",
        metadata={
            "help": "model by name where there is no checkpoint: any timm ViT, torchvision/vit_b_16, face_p8s8, "
            "face_p12s8, hybrid_mobilenetv2"
        },
    )
    model_args: str = field(default="", metadata={"help": "arguments of the model: 'depth=6,embed_dim=192'"})
    img_size: int = field(default=0, metadata={"help": "side of the input in pixels; 0 is the model's own"})
    patch_size: int = field(default=0, metadata={"help": "side of a patch in pixels; 0 is the model's own"})
    face_head: str = field(
        default="",
        metadata={
            "help": "head of a Face Transformer; empty is cosface, or softmax where a checkpoint's head has a bias",
            "choices": ["", "softmax", "cosface", "arcface", "sface"],
        },
    )
    lora_merged: bool = field(
        default=False, metadata={"help": "the checkpoint's weights contain its adapter already (GS-LoRA's task files)"}
    )
    normalize: str = field(
        default="auto",
        metadata={
            "help": "pixel statistics: half (0.5 and 0.5), imagenet or raw (0..1); auto is what the model's kind uses",
            "choices": ["auto", *models.STATISTICS],
        },
    )
    narrow_head: bool = field(
        default=False,
        metadata={"help": "keep only those of the checkpoint's logit rows whose classes --data has (ImageNet100)"},
    )
    stem_weights: str = field(
        default="", metadata={"help": "torchvision mobilenet_v2 state dict for the hybrid's stem"}
    )
    pretrained: bool = field(
        default=False, metadata={"help": "fetch the weights that timm or torchvision publish for --model"}
    )
    head_rows: int = field(
        default=0,
        metadata={"help": "logit rows in all, at least; more than there are classes stay unused (published: 200)"},
    )
    dropout: float = field(
        default=0.0, metadata={"help": "dropout after the position embedding and in FFNs (published: 0.1)"}
    )
    allow_chance: bool = field(
        default=False, metadata={"help": "go on with a model that knows its own classes no better than a guesser"}
    )
    cache_dir: str = field(default="data", metadata={"help": "where CIFAR is kept"})

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size", "head_rows"):
            if getattr(self, name) < 0:
                raise UserError(f"`--{name.replace('_', '-')}` must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"`--dropout` is a share, 0 up to 1, got {self.dropout}.")


def spec_from(config: SourceConfig, classes: Sequence[str]) -> ModelSpec:
    """The spec of a model by name, with the sizes that the flags state."""
    if not config.model:
        raise UserError("which model? Give --checkpoint, or --model with a timm name such as vit_base_patch16_224.")
    args = models.parse_args(config.model_args)
    for name in ("img_size", "patch_size"):
        if getattr(config, name):
            args[name] = getattr(config, name)
    if config.face_head and config.model not in models.FACES:
        raise UserError(f"`--face-head` is for {' and '.join(models.FACES)}, not for {config.model}.")
    if config.face_head:
        args["head"] = config.face_head
    spec = models.spec_of(config.model, args, classes)
    return _normalized(spec, config)


def _normalized(spec: ModelSpec, config: SourceConfig) -> ModelSpec:
    if config.normalize != "auto":
        spec.mean, spec.std = models.STATISTICS[config.normalize].values()
    return spec


def base_model(config: SourceConfig, images: data.ImageSet) -> tuple[nn.Module, ModelSpec]:
    """The pretrained model and its spec: a folder of ours, a published file, or weights fetched by name.

    Raises:
        UserError: nothing to load, or its rows cannot be named.
    """
    path = Path(config.checkpoint)
    if config.checkpoint and (path / "adapter").is_dir():  # an earlier swap is a base like any other
        model, spec, _ = load_run(path)
        model = adapters.merge(model)
    elif config.checkpoint and path.is_dir():
        model, spec = models.load_folder(path / "model" if (path / "model").is_dir() else path)
    elif config.checkpoint:
        model, spec = _published(config, images)
    elif config.pretrained:
        spec = spec_from(config, [])
        spec.classes = [f"row_{i}" for i in range(models.published_rows(spec.name))]
        model = models.build(spec, pretrained=True)
        spec.classes = name_rows(len(spec.classes), config, images)
    else:
        raise UserError(
            "a swap starts from a pretrained model: give --checkpoint, or --model and --pretrained to fetch weights."
        )
    if config.narrow_head:
        rows = [i for i, name in enumerate(spec.classes) if name in images.classes]
        if not rows:
            raise UserError("`--narrow-head`: no logit row is named like a class of --data; see --class-names.")
        models.select_rows(model, rows)
        spec.classes = [spec.classes[i] for i in rows]
    return model, spec


def _published(config: SourceConfig, images: data.ImageSet) -> tuple[nn.Module, ModelSpec]:
    """A model from somebody's file: ViT-pytorch, timm, torchvision, .npz or Face Transformer."""
    from ks_classification import load_checkpoint

    args = models.parse_args(config.model_args)
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
    statistics = {"face": models.RAW, "torchvision": models.IMAGENET, "timm": models.HALF}[kind]
    arguments = {k: v for k, v in arguments.items() if k != "num_classes"}
    size = arguments.get("image_size") or arguments["img_size"]
    return model, _normalized(ModelSpec(models.PUBLISHED + kind, arguments, names, **statistics, size=size), config)


def name_rows(rows: int, config: SourceConfig, images: data.ImageSet) -> list[str]:
    """Names of a published checkpoint's logit rows: from --class-names, from folder names, or the data's classes.

    Folder names state rows (see `data.folders`), are ImageNet classes (see `imagenet`), or are as many as there are
    rows and in the rows' order. Rows without a name are called row_17 and the like.

    Raises:
        UserError: it is not known which class stands in which row.
    """
    names: Sequence[str] | None = None
    if config.class_names:
        names = read_list(config.class_names)
        if len(names) > rows:
            raise UserError(f"--class-names holds {len(names)} names, but the checkpoint has {rows} logit rows.")
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
    names = list(images.classes if names is None else names)
    return names + [f"row_{i}" for i in range(len(names), rows)]


class Opening(NamedTuple):
    """A swap before its images are read: everything that can be wrong so far has been checked."""

    images: data.ImageSet
    model: nn.Module
    spec: ModelSpec
    plan: Plan

    def domain(self, image_config: ImageConfig, head_rows: int, seed: int) -> ClassificationDomain:
        """The domain; reads the images."""
        missing = [c for group in getattr(self.plan, "missing", ()) for c in self.plan.groups[group]]
        forgotten = {name for action, names in self.plan.steps if action == "forget" for name in names}
        roles = dict.fromkeys(self.plan.groups, "retain") | dict.fromkeys(forgotten, "forget")
        roles |= dict.fromkeys(self.plan.learned_groups, "learn")
        domain = ClassificationDomain(
            self.spec, self.images, self.plan.groups, image_config, base=self.model, seed=seed, missing=missing, roles=roles
        )  # fmt: skip
        unused = [f"unused_{i}" for i in range(len(domain.classes), head_rows)]
        domain.classes = domain.classes.extended(unused)
        return domain


def open_swap(config: SourceConfig, plan_config: PlanConfig, lora_config: LoraConfig | None = None) -> Opening:
    """The model, the plan and the names of the images that the flags of swap.py describe.

    Args:
        lora_config: adapters to try on the model, so that a wrong rank shows now.
    """
    if not plan_config.plan:
        check_order(plan_config.order)
    base_images = data.load(config.data, config.cache_dir)
    images = base_images.joined(data.load(config.learn_data, config.cache_dir)) if config.learn_data else base_images
    model, spec = base_model(config, base_images)
    new = [c for c in images.classes if c not in spec.classes]
    known = [c for c in spec.classes if c in images.classes]
    plan = plan_from(plan_config, known, new)
    models.set_dropout(model, config.dropout)
    if lora_config is not None:
        targets = {"ffn": models.ffn_names(model), "attention": models.attention_names(model)}
        lora.inject(copy.deepcopy(model), lora.select(targets, lora_config, model), lora_config.lora_rank, 1.0)
    return Opening(images, model, spec, plan)


def config_of(kind: type, flags: dict[str, Any]) -> Any:
    """A config from the flags that a run recorded."""
    return kind(**{f.name: flags[f.name] for f in fields(kind) if f.name in flags})


def load_run(folder: str | Path, checkpoint: str = "") -> tuple[nn.Module, ModelSpec, dict[str, Any]]:
    """(model in eval mode, its spec, config.json) of a finished run: base model, adapter and new rows.

    Args:
        checkpoint: where the base model lies now, if it has moved.

    Raises:
        UserError: no run there, or its base model has moved.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder} is no run (config.json is missing); name the folder that swap.py or pretrain.py wrote."
        )
    record = read_json(folder / "config.json")
    if (folder / "model").is_dir():
        return *models.load_folder(folder / "model"), record
    if not (folder / "adapter").is_dir():
        raise UserError(f"{folder} has no result yet; finish the run with its own command first.")
    info, _ = adapters.read(folder / "adapter")
    source = config_of(SourceConfig, record["flags"])
    source.checkpoint = checkpoint or source.checkpoint
    if source.checkpoint and not Path(source.checkpoint).exists():
        raise UserError(f"the base model of {folder}, {source.checkpoint}, is not there; name it with --checkpoint.")
    images = data.ImageSet([], [], [])
    if source.narrow_head:
        images = data.load(source.data, source.cache_dir)
    model, spec = base_model(source, images)
    spec.classes = info["classes"]
    models.widen(model, len(spec.classes))
    adapters.load(model, folder / "adapter")
    return model.eval(), spec, record
