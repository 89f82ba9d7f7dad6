"""Object detection for the commands: flags, models and data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import adapters, lora
from common.config import from_values
from common.domain import ClassTable, Domain
from common.errors import UserError
from common.plan import Plan
from common.plan_file import PlanConfig, plan_from
from common.session import Answer, Base, Flags, Loaded, Opening, Problem, Session
from common.settings import Settings
from common.splits import read_list, resolve, shorten
from ks_detection.check import check
from ks_detection.checkpoints.backbone import load_backbone
from ks_detection.checkpoints.export import export_official
from ks_detection.checkpoints.load import load_checkpoint
from ks_detection.cl_detr import ForgettingConfig, forgetting_plan
from ks_detection.coco_names import COCO
from ks_detection.data.datasets import from_datasets
from ks_detection.data.folders import load
from ks_detection.data.records import DetectionSet
from ks_detection.data.yolo import SUFFIXES
from ks_detection.deformable_detr.folder import is_folder
from ks_detection.detector import extend_classes
from ks_detection.detectors import CONFIGS, Config, build_detector, changed, config_from
from ks_detection.dino.config import DinoConfig
from ks_detection.dino.config_file import read_config, read_options
from ks_detection.domain import MODEL_FILE, DetectionDomain, ImageConfig
from ks_detection.predict import PredictConfig, answers
from ks_detection.published import tidy


@dataclass
class SourceConfig:
    """Model and data."""

    data: str = field(
        default="digits",
        metadata={"help": "images: a COCO, VOC or YOLO folder, several separated by commas, or digits"},
    )
    learn_data: str = field(default="", metadata={"help": "folder of the classes to learn (three-folder layout)"})
    forget_data: str = field(default="", metadata={"help": "folder of the classes to forget (three-folder layout)"})
    retain_data: str = field(default="", metadata={"help": "folder of the classes to retain (three-folder layout)"})
    data_classes: str = field(
        default="", metadata={"help": "names of the labels of Dataset objects given from Python, in order"}
    )
    checkpoint: str = field(
        default="",
        metadata={
            "help": "pretrained detector: an official .pth, a swap's .pth, a Hugging Face folder, or a run folder"
        },
    )
    ema: bool = field(default=False, metadata={"help": "take the averaged weights of an official checkpoint"})
    config_file: str = field(default="", metadata={"help": "a config such as the published config/DINO/*.py (also -c)"})
    options: str = field(
        default="", metadata={"help": "overrides of its values, or of the checkpoint's: 'key=value key=value'"}
    )
    class_names: str = field(
        default="",
        metadata={"help": "names of a checkpoint's logit rows, in order: a,b,c or @file; COCO's if it has 91"},
    )


@dataclass
class BaseConfig:
    """What the base model shall know."""

    classes: str = field(default="", metadata={"help": "classes of --data to train on: a,b,c or @file; default all"})
    backbone_weights: str = field(
        default="",
        metadata={"help": "weights of the backbone alone, such as torchvision's resnet50 or mobilenet_v2 .pth"},
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "train all but the backbone, whose maps --cache-features can then keep"}
    )
    half: bool = field(default=False, metadata={"help": "store the result in float16, half the size"})


def model_config(source: SourceConfig, **changes: Any) -> Config | None:
    """The config of --config-file and --options, or None without a file."""
    if not source.config_file:
        return None
    return config_from(read_config(source.config_file, source.options.split()) | changes)


def own_changes(source: SourceConfig) -> dict[str, Any]:
    """The values of --options where no --config-file takes them: they change the checkpoint's own config."""
    return {} if source.config_file else read_options(source.options.split())


def base_model(source: SourceConfig) -> nn.Module:
    """The pretrained detector with names for its rows; adapters of an earlier swap are merged.

    Raises:
        UserError: nothing to load, or what is there does not fit the config.
    """
    if not source.checkpoint:
        raise UserError(
            "a swap starts from a pretrained detector: give --checkpoint, an official .pth file or a run folder of pretrain.py."
        )
    path = Path(source.checkpoint)
    if (path / "adapter").is_dir():  # an earlier swap is a base like any other
        given = {name: getattr(source, name) for name in ("config_file", "options", "ema") if getattr(source, name)}
        model = SESSION.load(path, given).base.model
    else:
        if path.is_dir() and not is_folder(path):
            path = next((p for p in (path / "model" / MODEL_FILE, path / MODEL_FILE) if p.is_file()), path / MODEL_FILE)
        model = load_checkpoint(path, model_config(source), ema=source.ema, changes=own_changes(source))
    if lora.adapters(model):
        table = model.class_table
        model = adapters.merge(model)
        model.config.lora_rank, model.class_table = 0, table
    model.class_table = name_rows(model, source)
    return model


def name_rows(model: nn.Module, source: SourceConfig) -> ClassTable:
    """Names of the detector's rows: --class-names, its own, or COCO's where there are at least 91 rows."""
    rows = model.config.num_classes
    if source.class_names:
        names = read_list(source.class_names)
        if len(names) > rows:
            raise UserError(f"--class-names holds {len(names)} names, but the checkpoint has {rows} classes.")
    elif model.class_table is not None:
        return model.class_table
    elif rows >= 91:
        names = [COCO.get(row, f"row_{row}") for row in range(91)]
    else:
        raise UserError(f"the checkpoint has {rows} classes without names; give --class-names a,b,c or @file.")
    names += [f"row_{row}" for row in range(len(names), rows)]
    return ClassTable(tuple(names), tuple(range(rows)))


def fresh_model(source: SourceConfig, names: tuple[str, ...], ids: tuple[int, ...]) -> nn.Module:
    """A detector at random with one row per name, of --config-file or else a DINO."""
    changes = {"num_classes": len(names), "dn_labelbook_size": len(names)}
    config = model_config(source, **changes)
    if config is None:
        config = config_from(changed(DinoConfig(), own_changes(source)).to_dict() | changes)
    model = build_detector(config)
    model.class_table = ClassTable(names, ids)
    return model


def open_data(source: SourceConfig, objects: Any = None) -> tuple[DetectionSet, dict[str, str]]:
    """The images, and the flags learn, forget and retain that a three-folder layout implies.

    objects: (train, test) Datasets in the place of --data.
    """
    folders = {"learn": source.learn_data, "forget": source.forget_data, "retain": source.retain_data}
    if not (folders["forget"] or folders["retain"]):
        data = load(source.data) if objects is None else from_datasets(objects, read_list(source.data_classes))
        return (data.joined(load(source.learn_data)) if source.learn_data else data), {}
    if objects is not None:
        raise UserError("--forget-data and --retain-data hold all images of a run; leave them or the Datasets out.")
    missing = [name for name, folder in folders.items() if not folder and name != "learn"]
    if missing:
        raise UserError(f"a three-folder layout needs --{missing[0]}-data as well.")
    parts = {name: load(folder) for name, folder in folders.items() if folder}
    whole, *others = parts.values()
    for other in others:
        whole = whole.joined(other)
    shown = {name: {a.label for image in part.train for a in image.things} for name, part in parts.items()}
    return whole, {name: ",".join(c for c in part.classes if c in shown[name]) for name, part in parts.items()}


class DetectionSession(Session):
    """DINO and Deformable DETR on images with boxes."""

    name = "detection"
    summaries = {
        "swap": "Learn, forget and retain object classes: one run, from a pretrained detector to a report.",
        "pretrain": "Train a detector on named classes, from scratch or from a checkpoint.",
        "evaluate": "Score a finished run, or a checkpoint: COCO AP per group of classes and per class.",
        "predict": "Find objects in images: class, score and box (left, top, right, bottom in pixels) of each.",
        "check": "List everything that is wrong with images and boxes before they are trained on; exit code 2 if a run would stop.",
        "export": "Write the detector of a run, adapters merged, as a file that the original code loads.",
    }
    examples = {
        "swap": "torchrun --nproc_per_node=2 object-detection/swap.py -c config/DINO/DINO_4scale.py \\\n"
        "    --checkpoint checkpoint0011_4scale.pth --data coco --learn-data birds --learn bird2 --forget cat,dog",
        "pretrain": "python object-detection/pretrain.py --data mydata -c object-detection/configs/mobilenet_small.py \\\n"
        "    --output-dir results/base",
        "evaluate": "python object-detection/evaluate.py results/detection/fltf-gs_lora-seed0 --curves curves.svg",
        "predict": "python object-detection/predict.py results/detection/fltf-gs_lora-seed0 photos/ --output-dir drawn",
        "check": "python object-detection/check.py mydata",
        "export": "python object-detection/export.py results/detection/fltf-gs_lora-seed0 swapped.pth",
    }
    source, view = SourceConfig, ImageConfig
    swap_flags, pretrain_flags, predict_flags = (ForgettingConfig,), (BaseConfig,), (PredictConfig,)
    everyday = ("config_file", "class_names", "mixed", "test_size")
    defaults = {
        "swap": {
            "batch_size": 2, "lr": 1e-4, "weight_decay": 1e-4, "clip": 0.1, "epochs": 20, "schedule": "constant", "warmup": 0.0,
            "learn_weight": 0.9, "sparsity_weight": 0.01,
        },  # of the published detection runs, where the loop's own are meant for classification
        "pretrain": {"method": "finetune", "epochs": 12, "batch_size": 2, "lr": 1e-4, "weight_decay": 1e-4, "clip": 0.1},
    }  # fmt: skip
    reference = Path(__file__).parent / "reference.yaml"
    data_flags = ("learn_data", "forget_data", "retain_data")
    suffixes = SUFFIXES
    formats = ("official", "official-half")

    def tidy(self, argv: Sequence[str]) -> list[str]:
        return tidy(argv)

    # ---- runs --------------------------------------------------------------------------------------------

    def open_swap(self, settings: Settings) -> Opening:
        source, chosen, forgetting = settings[SourceConfig], settings[PlanConfig], settings[ForgettingConfig]
        if not (chosen.plan or forgetting.num_of_first_cls or source.forget_data or source.retain_data):
            chosen.chosen_order()
        data, implied = open_data(source, settings.data)
        for name, text in implied.items():
            if not getattr(chosen, name):
                setattr(chosen, name, text)
        given, flags = settings.model, settings.flags
        model = (self.base_model(flags) if given is None else self.given_model(given, flags)).model
        names = model.class_table.names
        known, new = [c for c in names if c in data.classes], [c for c in data.classes if c not in names]
        if not known:
            raise UserError(f"the data shows none of the checkpoint's classes: {shorten(names)}.")
        plan = forgetting_plan(forgetting, chosen, known) or plan_from(chosen, known, new)
        images, seed = settings[ImageConfig], settings.train.seed
        return Opening(plan, lambda: DetectionDomain(model, data, dict(plan.groups), images, seed))

    def open_pretrain(self, settings: Settings) -> Opening:
        source, wanted = settings[SourceConfig], settings[BaseConfig]
        data, _ = open_data(source, settings.data)
        classes = tuple(resolve(wanted.classes, data.classes, "--classes") if wanted.classes else data.classes)
        torch.manual_seed(settings.train.seed)
        if source.checkpoint:
            model = base_model(source)
        else:
            model = fresh_model(source, classes, tuple(data.ids.get(name, row) for row, name in enumerate(classes)))
        if wanted.backbone_weights:
            load_backbone(model, wanted.backbone_weights)
        if wanted.freeze_backbone:
            model.backbone.requires_grad_(False)
        groups, images, seed = {"base": classes}, settings[ImageConfig], settings.train.seed
        plan = Plan("pretrain", groups, (("learn", ("base",)),))
        return Opening(plan, lambda: DetectionDomain(model, data, groups, images, seed, half=wanted.half))

    # ---- models ------------------------------------------------------------------------------------------

    def is_run(self, path: str | Path) -> bool:
        """Whether a folder holds a run of ours; a Hugging Face folder has a config.json too."""
        return super().is_run(path) and not is_folder(path)

    def base_model(self, flags: Flags) -> Base:
        return _named(base_model(from_values(SourceConfig, flags)))

    def load_folder(self, folder: Path, flags: Flags) -> Base:
        return _named(load_checkpoint(folder / MODEL_FILE))

    def widened(self, base: Base, classes: Sequence[str]) -> Base:
        model = extend_classes(base.model, len(classes))
        model.class_table = ClassTable(tuple(classes), model.class_table.ids)
        return _named(model)

    def given_model(self, model: nn.Module, flags: Flags) -> Base:
        if not isinstance(getattr(model, "config", None), tuple(CONFIGS.values())):
            raise UserError(
                f"a {type(model).__name__} is no detector known here; make one with build_detector or load_checkpoint."
            )
        model = copy.deepcopy(model)
        model.class_table = name_rows(model, from_values(SourceConfig, flags))
        return _named(model)

    # ---- what the other verbs do -------------------------------------------------------------------------

    def scoring(self, loaded: Loaded) -> tuple[Domain, dict[str, tuple[str, ...]]]:
        flags, model = loaded.flags, loaded.base.model
        if not any(flags.get(name) for name in ("data", *self.data_flags)):
            raise UserError(
                "which images? Give --data: a checkpoint has none, nor has a run that was started with objects."
            )
        data, _ = open_data(from_values(SourceConfig, flags))
        chosen, groups = flags.get("classes", ""), dict(loaded.groups)
        if chosen or not groups:
            shared = [c for c in data.classes if c in loaded.base.classes]
            groups = {"chosen" if chosen else "all": tuple(resolve(chosen, shared, "--classes") if chosen else shared)}
        config = from_values(ImageConfig, {**flags, "cache_features": ""})
        return DetectionDomain(model, data, groups, config, training=False), groups

    def predict(self, loaded: Loaded, files: Sequence[Path], device: torch.device) -> Iterator[Answer]:
        config, recipe = from_values(PredictConfig, loaded.flags), from_values(ImageConfig, loaded.flags).recipe()
        skip, draw = bool(loaded.flags.get("skip_corrupt")), bool(loaded.flags.get("output_dir"))
        return answers(loaded.base.model, files, recipe, config, device, skip, draw)

    def check(self, text: str) -> tuple[list[str], list[Problem]]:
        return check(text)

    def export(self, loaded: Loaded, path: Path, kind: str) -> Path:
        return export_official(loaded.base.model, path, half=kind == "official-half")


def _named(model: nn.Module) -> Base:
    return Base(model, list(model.class_table.names))


SESSION = DetectionSession()
