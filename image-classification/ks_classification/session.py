"""Image classification for the commands: flags, models and data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from common import adapters, lora
from common.config import from_values
from common.domain import Domain
from common.errors import UserError
from common.lora import LoraConfig
from common.plan import Plan
from common.plan_file import PlanConfig, plan_from
from common.session import Answer, Base, Flags, Loaded, Opening, Problem, Session
from common.settings import Settings
from common.splits import read_list, resolve
from ks_classification import data, imagenet, models
from ks_classification.chance import refuse_chance
from ks_classification.check import check
from ks_classification.checkpoints import export_published, load_checkpoint
from ks_classification.domain import ClassificationDomain, ImageConfig
from ks_classification.hybrid import load_stem
from ks_classification.models import ModelSpec
from ks_classification.predict import PredictConfig, answers


@dataclass
class SourceConfig:
    """Model and data."""

    data: str = field(
        default="digits",
        metadata={"help": "images of the base classes: a folder with train/<class>/ and test/<class>/, several separated "
                          "by commas, hf:<folder>, cifar10, cifar100, or digits"},
    )  # fmt: skip
    learn_data: str = field(default="", metadata={"help": "images of the classes to be learned; default --data"})
    data_classes: str = field(
        default="", metadata={"help": "names of the labels of Dataset objects given from Python, in order"}
    )
    checkpoint: str = field(
        default="",
        metadata={"help": "pretrained model: a run of pretrain.py or swap.py, or a published .pth, .bin, .npz"},
    )
    class_names: str = field(
        default="", metadata={"help": "names of a checkpoint's logit rows, in order: a,b,c or @file"}
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
        base = SESSION.load(path, {}).base
        model, spec = adapters.merge(base.model), base.about
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


@dataclass
class BaseConfig:
    """What the base model shall know."""

    classes: str = field(default="", metadata={"help": "classes of --data to train on: a,b,c or @file; default all"})


class ClassificationSession(Session):
    """Vision transformers and folders of images."""

    name = "classification"
    summaries = {
        "swap": "Learn, forget and retain image classes: one run, from a pretrained model to a report.",
        "pretrain": "Train a base model from scratch on named classes.",
        "evaluate": "Score a finished run again, on its own groups of classes: the same numbers as in its report.",
        "predict": "Name what is on pictures: the most probable classes of each.",
        "check": "List everything that is wrong with images before they are trained on; exit code 2 if a run would stop.",
        "export": "Write the model of a run, adapters merged: under published keys, or as a folder for --checkpoint.",
    }
    examples = {
        "swap": "python image-classification/swap.py --data digits --checkpoint results/base --learn 8,9 --forget 0,1",
        "pretrain": "python image-classification/pretrain.py --data digits --no-flip --classes 0,1,2,3,4,5,6,7 "
        "--img-size 16 \\\n    --patch-size 4 --model-args embed_dim=64,depth=6,num_heads=4 --lr 2e-3 --output-dir results/base",
        "evaluate": "python image-classification/evaluate.py results/classification/fltf-gs_lora-seed0",
        "predict": "python image-classification/predict.py results/base holiday/ cat.jpg --json",
        "check": "python image-classification/check.py photos more",
        "export": "python image-classification/export.py results/classification/fltf-gs_lora-seed0 swapped.pth",
    }
    source, view = SourceConfig, ImageConfig
    pretrain_flags, predict_flags = (BaseConfig,), (PredictConfig,)
    everyday = ("model", "pretrained", "class_names", "img_size")
    defaults = {"pretrain": {"method": "finetune", "epochs": 20, "batch_size": 64, "model": "vit_tiny_patch16_224"}}
    reference = Path(__file__).parent / "reference.yaml"
    data_flags = ("learn_data",)
    suffixes = data.SUFFIXES
    formats = ("published", "folder")

    def open_swap(self, settings: Settings) -> Opening:
        source, chosen = settings[SourceConfig], settings[PlanConfig]
        if not chosen.plan:
            chosen.chosen_order()
        base_images = self._images(settings)
        images = base_images
        if source.learn_data:
            images = base_images.joined(data.load(source.learn_data, source.cache_dir))
        base = self._base(settings, base_images)
        new = [c for c in images.classes if c not in base.classes]
        plan = plan_from(chosen, [c for c in base.classes if c in images.classes], new)
        models.set_dropout(base.model, source.dropout)
        if settings.method.scope(settings.method_config) == "adapter":
            _try_adapters(base.model, settings.lora)
        return Opening(plan, lambda: _checked(_domain(base, images, plan, settings), plan, settings))

    def open_pretrain(self, settings: Settings) -> Opening:
        source = settings[SourceConfig]
        for name in (
            "allow_chance",
            "checkpoint",
            "class_names",
            "head_rows",
            "learn_data",
            "lora_merged",
            "narrow_head",
        ):
            if getattr(source, name):
                raise UserError(
                    f"`--{name.replace('_', '-')}` is for swap.py; pretrain.py makes a new model of --model."
                )
        spec, images, classes = spec_from(source, []), self._images(settings), settings[BaseConfig].classes
        spec.classes = resolve(classes, images.classes, "--classes") if classes else list(images.classes)
        torch.manual_seed(settings.train.seed)
        model = models.build(spec, pretrained=source.pretrained)
        if source.stem_weights:
            load_stem(model, source.stem_weights)
        models.set_dropout(model, source.dropout)
        plan = Plan("pretrain", {"base": tuple(spec.classes)}, (("learn", ("base",)),))
        return Opening(plan, lambda: _domain(Base(model, spec.classes, spec), images, plan, settings))

    @staticmethod
    def _images(settings: Settings) -> data.ImageSet:
        source = settings[SourceConfig]
        if settings.data is not None:
            return data.from_datasets(settings.data, read_list(source.data_classes))
        return data.load(source.data, source.cache_dir)

    def _base(self, settings: Settings, images: data.ImageSet) -> Base:
        if settings.model is not None:
            return self.given_model(settings.model, settings.flags)
        model, spec = base_model(settings[SourceConfig], images)
        return Base(model, spec.classes, spec)

    def given_model(self, model: nn.Module, flags: Flags) -> Base:
        spec = models.given_spec(model, read_list(flags.get("class_names", "")), int(flags.get("img_size") or 0))
        return Base(copy.deepcopy(model), spec.classes, _normalized(spec, from_values(SourceConfig, flags)))

    def base_model(self, flags: Flags) -> Base:
        source = from_values(SourceConfig, flags)
        images = data.ImageSet([], [], [])
        if source.data and (source.narrow_head or "data" in flags):
            images = data.load(source.data, source.cache_dir)
        model, spec = base_model(source, images)
        return Base(model, spec.classes, spec)

    def load_folder(self, folder: Path, flags: Flags) -> Base:
        model, spec = models.load_folder(folder)
        return Base(model, spec.classes, spec)

    def widened(self, base: Base, classes: Sequence[str]) -> Base:
        base.about.classes = list(classes)
        return Base(models.widen(base.model, len(classes)), list(classes), base.about)

    def scoring(self, loaded: Loaded) -> tuple[Domain, dict[str, tuple[str, ...]]]:
        flags = loaded.flags
        places = ",".join(filter(None, (flags.get("data"), flags.get("learn_data"))))
        if not places:
            raise UserError(
                "which images? Give --data: a checkpoint has none, nor has a run that was started with objects."
            )
        images = data.load(places, flags.get("cache_dir", "data"))
        chosen = flags.get("classes", "")
        shared = [c for c in loaded.base.classes if c in images.classes]
        groups = dict(loaded.groups)
        if chosen or not groups:
            groups = {"chosen" if chosen else "all": tuple(resolve(chosen, shared, "--classes") if chosen else shared)}
        config = from_values(ImageConfig, flags)
        config.label_smoothing = 0.0
        domain = ClassificationDomain(loaded.base.about, images, groups, config, base=loaded.base.model, training=False)
        return domain, groups

    def predict(self, loaded: Loaded, files: Sequence[Path], device: torch.device) -> Iterator[Answer]:
        config, images = from_values(PredictConfig, loaded.flags), from_values(ImageConfig, loaded.flags)
        return answers(loaded.base.model, loaded.base.about, files, images, config, device)

    def check(self, text: str) -> tuple[list[str], list[Problem]]:
        return check(text, data.load(text))

    def export(self, loaded: Loaded, path: Path, kind: str) -> Path:
        merged = adapters.merge(loaded.base.model)
        if kind == "published":
            export_published(merged, path, merge=True)
        else:
            adapters.save_model(merged, path, {"classes": loaded.base.classes})
            models.save_folder(path, loaded.base.about)
        return path


def _domain(base: Base, images: data.ImageSet, plan: Plan, settings: Settings) -> ClassificationDomain:
    """The domain of a plan; reads the images."""
    missing = [c for group in plan.missing for c in plan.groups[group]]
    forgotten = {name for action, names in plan.steps if action == "forget" for name in names}
    roles = dict.fromkeys(plan.groups, "retain") | dict.fromkeys(forgotten, "forget")
    roles |= dict.fromkeys(plan.learned_groups, "learn")
    seed, config = settings.train.seed, settings[ImageConfig]
    domain = ClassificationDomain(
        base.about, images, plan.groups, config, base=base.model, seed=seed, missing=missing, roles=roles
    )
    unused = [f"unused_{i}" for i in range(len(domain.classes), settings[SourceConfig].head_rows)]
    domain.classes = domain.classes.extended(unused)
    return domain


def _checked(domain: ClassificationDomain, plan: Plan, settings: Settings) -> ClassificationDomain:
    """The domain, unless its base model does not know its own classes. Raises UserError."""
    if not settings[SourceConfig].allow_chance:
        refuse_chance(domain, plan, settings.train)
    return domain


def _try_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Puts the adapters on a copy, so that a wrong rank or position shows before the images are read."""
    targets = {"ffn": models.ffn_names(model), "attention": models.attention_names(model)}
    lora.inject(copy.deepcopy(model), lora.select(targets, config, model), config.lora_rank, 1.0)


SESSION = ClassificationSession()
