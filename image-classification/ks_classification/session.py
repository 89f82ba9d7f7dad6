"""From flags to a domain and a plan: what swap.py, pretrain.py, evaluate.py and predict.py share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from common import adapters
from common.errors import UserError
from common.plan import Plan, PlanConfig, plan_from
from common.record import read_json
from common.splits import read_list
from ks_classification import data, models
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
        default="", metadata={"help": "pretrained model: a folder of pretrain.py, or a published .pth, .bin, .npz"}
    )
    class_names: str = field(
        default="", metadata={"help": "names of a published checkpoint's logit rows, in order: a,b,c or @file"}
    )
    model: str = field(
        default="",
        metadata={
            "help": "model by name where there is no checkpoint: any timm ViT, torchvision/vit_b_16, hybrid_mobilenetv2"
        },
    )
    model_args: str = field(default="", metadata={"help": "arguments of the model: 'depth=6,embed_dim=192'"})
    img_size: int = field(default=0, metadata={"help": "side of the input in pixels; 0 is the model's own"})
    patch_size: int = field(default=0, metadata={"help": "side of a patch in pixels; 0 is the model's own"})
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
    cache_dir: str = field(default="data", metadata={"help": "where CIFAR is kept"})

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size"):
            if getattr(self, name) < 0:
                raise UserError(f"`--{name.replace('_', '-')}` must not be negative, got {getattr(self, name)}.")


def spec_from(config: SourceConfig, classes: Sequence[str]) -> ModelSpec:
    """The spec of a model by name, with the sizes that the flags state."""
    if not config.model:
        raise UserError("which model? Give --checkpoint, or --model with a timm name such as vit_base_patch16_224.")
    args = models.parse_args(config.model_args)
    for name in ("img_size", "patch_size"):
        if getattr(config, name):
            args[name] = getattr(config, name)
    return models.spec_of(config.model, args, classes)


def base_model(config: SourceConfig, images: data.ImageSet) -> tuple[nn.Module, ModelSpec]:
    """The pretrained model and its spec: a folder of ours, a published file, or weights fetched by name.

    Raises:
        UserError: nothing to load, or its rows cannot be named.
    """
    path = Path(config.checkpoint)
    if config.checkpoint and path.is_dir():
        return models.load_folder(path / "model" if (path / "model").is_dir() else path)
    if config.checkpoint:
        from ks_classification import load_checkpoint

        model = load_checkpoint(config.checkpoint)
        if next(iter(adapters.adapters(model)), None) is not None:
            model = adapters.merge(model)  # a published swap is a base like any other
        rows = model.get_submodule(models.classifier_name(model)).weight.shape[0]
        size = config.img_size or getattr(getattr(model, "patch_embed", None), "img_size", (224,))[0]
        return model, ModelSpec("checkpoint", {}, name_rows(rows, config, images), size=size)
    spec = spec_from(config, images.classes)
    if not config.pretrained:
        raise UserError(
            "a swap starts from a pretrained model: give --checkpoint, or --pretrained to fetch --model's weights."
        )
    model = models.build(spec, pretrained=True)
    return model, spec


def name_rows(rows: int, config: SourceConfig, images: data.ImageSet) -> list[str]:
    """Names of a published checkpoint's logit rows: from --class-names, from folder names, or the data's classes.

    Rows without a name are called row_17 and the like.
    """
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
    elif len(images.classes) <= rows:
        names = list(images.classes)
    else:
        raise UserError(
            f"the checkpoint has {rows} logit rows and {config.data} {len(images.classes)} classes; name the rows with --class-names."
        )
    return names + [f"row_{i}" for i in range(len(names), rows)]


def open_swap(
    config: SourceConfig, image_config: ImageConfig, plan_config: PlanConfig, seed: int
) -> tuple[ClassificationDomain, Plan]:
    """The domain and the plan that the flags of swap.py describe."""
    base_images = data.load(config.data, config.cache_dir)
    images = base_images.joined(data.load(config.learn_data, config.cache_dir)) if config.learn_data else base_images
    model, spec = base_model(config, base_images)
    new = [c for c in images.classes if c not in spec.classes]
    known = [c for c in spec.classes if c in images.classes]
    plan = plan_from(plan_config, known, new)
    models.set_dropout(model, config.dropout)
    domain = ClassificationDomain(spec, images, plan.groups, image_config, base=model, seed=seed)
    unused = [f"unused_{i}" for i in range(len(domain.classes), config.head_rows)]
    domain.classes = domain.classes.extended(unused)
    return domain, plan


def config_of(kind: type, flags: dict[str, Any]) -> Any:
    """A config from the flags that a run recorded."""
    return kind(**{f.name: flags[f.name] for f in fields(kind) if f.name in flags})


def load_run(folder: str | Path) -> tuple[nn.Module, ModelSpec, dict[str, Any]]:
    """(model in eval mode, its spec, config.json) of a finished run: base model, adapter and new rows.

    Raises:
        UserError: no run there, or its base model has moved.
    """
    folder = Path(folder)
    record = read_json(folder / "config.json")
    if (folder / "model").is_dir():
        return *models.load_folder(folder / "model"), record
    info, _ = adapters.read(folder / "adapter")
    source = config_of(SourceConfig, record["flags"])
    source.class_names = ""
    model, spec = base_model(source, data.ImageSet([], [], []))
    spec.classes = info["classes"]
    models.widen(model, len(spec.classes))
    adapters.load(model, folder / "adapter")
    return model.eval(), spec, record
