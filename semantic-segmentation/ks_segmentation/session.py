"""Semantic segmentation for the commands: flags, models and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import adapters
from common.config import Parser, from_values
from common.domain import Domain
from common.errors import UserError
from common.plan import Plan
from common.plan_file import PlanConfig, plan_from
from common.session import Answer, Base, Flags, Loaded, Opening, Problem, Session
from common.settings import Settings
from common.splits import read_list, resolve
from ks_segmentation import class_lists, config_words, layouts
from ks_segmentation.architecture import build_mask2former
from ks_segmentation.check import check
from ks_segmentation.checkpoint import CLASSES_KEY, class_count, load_checkpoint, load_weights
from ks_segmentation.config import Config, load_config
from ks_segmentation.domain import MaskConfig, SegmentationDomain
from ks_segmentation.export import export_detectron2
from ks_segmentation.folder import MODEL_FILE, load_folder, save_config
from ks_segmentation.layouts import MaskSet
from ks_segmentation.model import Mask2Former
from ks_segmentation.predict import answers
from ks_segmentation.read_file import WEIGHT_FILES, read_weights
from ks_segmentation.scan import scan

PUBLISHED = ("learnsetname", "learnset", "forgetset", "retainset")  # flags of the published three folders
# What suits segmentation where no config says otherwise.
OURS = {
    "batch_size": 4, "lr": 1e-3, "clip": 1.0, "bound": 5.0, "sparsity_weight": 0.01, "learn_weight": 0.9,
    "forget_weight": 1.0,
}  # fmt: skip


@dataclass
class SourceConfig:
    """Model and data."""

    config_file: str = field(
        default="", metadata={"help": "detectron2 YAML file of the model; `KEY value` words at the end override it"}
    )
    checkpoint: str = field(
        default="",
        metadata={"help": "pretrained model: a run of pretrain.py or swap.py, a detectron2 .pth or .pkl, .safetensors, a "
                          "Hugging Face folder; default MODEL.WEIGHTS"},
    )  # fmt: skip
    data: str = field(
        default="",
        metadata={"help": "masks of the base classes: KIND:FOLDER (folder, ade20k, voc, coco, cityscapes, pet, "
                          "deepglobe), several separated by commas, or digits"},
    )  # fmt: skip
    learn_data: str = field(default="", metadata={"help": "more data, with the classes to be learned, likewise"})
    data_classes: str = field(
        default="",
        metadata={
            "help": "names of the mask ids of --data in order, where the data does not state them: a,b,c or @file"
        },
    )
    class_names: str = field(
        default="",
        metadata={"help": "names of the checkpoint's classes in order: a,b,c or @file (default: by data set)"},
    )
    learnsetname: str = field(
        default="", metadata={"help": "published three-folder data: which six classes are new (voc, pet, coco, sat)"}
    )
    learnset: str = field(default="", metadata={"help": "its learn folder"})
    forgetset: str = field(default="", metadata={"help": "its forget folder"})
    retainset: str = field(default="", metadata={"help": "its retain folder"})


@dataclass
class BaseConfig:
    """What the base model shall know."""

    classes: str = field(default="", metadata={"help": "classes of --data to train on: a,b,c or @file; default all"})
    backbone_weights: str = field(
        default="", metadata={"help": "pretrained backbone (.pth, .pkl); default MODEL.WEIGHTS"}
    )


class SegmentationSession(Session):
    """Mask2Former and images with class-id masks."""

    name = "segmentation"
    summaries = {
        "swap": "Learn, forget and retain the classes of a Mask2Former: one run, from a pretrained model to a report.",
        "pretrain": "Train a Mask2Former on named classes.",
        "evaluate": "Score a finished run, or a checkpoint: mIoU, fwIoU, mACC (total of ACC), pACC and every class's IoU.",
        "predict": "Say which classes images hold, and write a PNG of class ids and an overlay for each.",
        "check": "List everything that is wrong with images and masks before they are trained on; exit code 2 if a run "
        "would stop.",
        "export": "Write the model of a run, adapters merged: as a detectron2 checkpoint, or as a folder for --checkpoint.",
    }
    examples = {
        "swap": "python semantic-segmentation/swap.py --config-file swin_tiny.yaml --data ade20k:ADEChallengeData2016 \\\n"
        "    --learn-data voc:VOC2012 --learn sheep,cow --forget wall,sky MODEL.WEIGHTS model.pkl",
        "pretrain": "python semantic-segmentation/pretrain.py --config-file semantic-segmentation/configs/digits.yaml "
        "\\\n    --data digits --classes ground,0,1,2,3,4,5,6,7 --steps 2400 --batch-size 16 --lr 1e-3 --output-dir results/base",
        "evaluate": "python semantic-segmentation/evaluate.py results/segmentation/fltf-gs_lora-seed0",
        "predict": "python semantic-segmentation/predict.py results/base street/ cat.jpg --output-dir answers",
        "check": "python semantic-segmentation/check.py ade20k:ADEChallengeData2016 voc:VOC2012",
        "export": "python semantic-segmentation/export.py results/segmentation/fltf-gs_lora-seed0 swapped.pth",
    }
    source, view = SourceConfig, MaskConfig
    pretrain_flags = (BaseConfig,)
    everyday = ("config_file", "opts", "class_names", "num_gpus")
    defaults = {
        "pretrain": {"method": "finetune", "epochs": 20, "lr": 1e-4, "learn_weight": 1.0, "sparsity_weight": 0.0}
    }
    reference = Path(__file__).parent / "reference.yaml"
    data_flags = ("learn_data", "data_classes", *PUBLISHED)
    suffixes = layouts.SUFFIXES
    formats = ("detectron2", "folder")

    # ---- flags -------------------------------------------------------------------------------------------

    def tidy(self, argv: Sequence[str]) -> list[str]:
        return config_words.tidied(argv)

    def defaults_for(self, verb: str, argv: Sequence[str]) -> Mapping[str, object]:
        return {**OURS, **config_words.stated(argv), **self.defaults.get(verb, {})}

    def extend(self, parser: Parser, argv: Sequence[str]) -> None:
        config_words.add_set(parser)
        known = {action.dest for action in parser._actions}
        stated = config_words.stated(argv, words_only=True)
        parser.set_defaults(**{name: value for name, value in stated.items() if name in known})

    def joined(self, recorded: Flags, given: Flags) -> dict[str, Any]:
        words = [*recorded.get("opts", ()), *given.get("opts", ())]
        return {**super().joined(recorded, given), "opts": words}

    # ---- runs --------------------------------------------------------------------------------------------

    def open_swap(self, settings: Settings) -> Opening:
        source, chosen, masks = settings[SourceConfig], settings[PlanConfig], settings[MaskConfig]
        if not (chosen.plan or source.learnsetname):
            chosen.chosen_order()
        if settings.model is not None:
            base = self.given_model(settings.model, settings.flags)
        else:
            base = self.base_model(settings.flags)
        if settings.data is not None:
            sets = [layouts.from_datasets(settings.data, read_list(source.data_classes))]
        else:
            sets = load_data(source, base.classes)
        if source.learnsetname:
            _published_groups(source, chosen, sets[0], base.classes)
        offered = occurring(sets, masks.cache_dir)
        known = [c for c in base.classes if c in offered]
        plan = plan_from(chosen, known, [c for c in offered if c not in base.classes])
        config_words.tell_unused(settings.flags)
        return Opening(plan, lambda: _domain(base, sets, plan, settings))

    def open_pretrain(self, settings: Settings) -> Opening:
        source, base = settings[SourceConfig], settings[BaseConfig]
        for name in ("checkpoint", "class_names", *PUBLISHED):
            if getattr(source, name):
                raise UserError(
                    f"`--{name.replace('_', '-')}` is for swap.py; pretrain.py makes a new model of --config-file."
                )
        sets = load_data(source, ())
        offered = list(dict.fromkeys(c for one in sets for c in one.classes))
        classes = resolve(base.classes, offered, "--classes") if base.classes else offered
        torch.manual_seed(settings.train.seed)
        config = read_config(source, [*settings.flags.get("opts", ()), CLASSES_KEY, len(classes)])
        model = build_mask2former(config)
        if base.backbone_weights or config.MODEL.WEIGHTS:
            load_weights(model, base.backbone_weights or config.MODEL.WEIGHTS, partial=True)
        config_words.tell_unused(settings.flags)
        plan = Plan("pretrain", {"base": tuple(classes)}, (("learn", ("base",)),))
        return Opening(plan, lambda: _domain(Base(model, classes), sets, plan, settings))

    # ---- models ------------------------------------------------------------------------------------------

    def is_run(self, path: str | Path) -> bool:
        weights = any((Path(path) / name).is_file() for name in WEIGHT_FILES)
        return super().is_run(path) and not weights  # a Hugging Face folder has a config.json too

    def base_path(self, flags: Flags) -> str:
        if flags.get("checkpoint") or not flags.get("config_file"):
            return super().base_path(flags)
        return load_config(flags["config_file"], flags.get("opts", ())).MODEL.WEIGHTS

    def base_model(self, flags: Flags) -> Base:
        source, words = from_values(SourceConfig, flags), flags.get("opts", ())
        path = Path(source.checkpoint)
        if source.checkpoint and (path / "adapter").is_dir():  # an earlier swap is a base like any other
            earlier = self.load(path, {"opts": words}).base
            return Base(adapters.merge(earlier.model), earlier.classes)
        for folder in (path, path / "model"):
            if source.checkpoint and (folder / MODEL_FILE).is_file():
                return Base(*load_folder(folder, words))
        config = read_config(source, words)
        weights = source.checkpoint or config.MODEL.WEIGHTS
        if not weights:
            raise UserError("a pretrained model is needed: give --checkpoint, or MODEL.WEIGHTS and a file at the end.")
        state = read_weights(weights)
        # A swap makes room for new classes; a checkpoint that is only looked at must fit its config.
        model = adapters.merge(load_checkpoint(state, config, rehead="learn" in flags))
        return Base(model, name_rows(class_count(state) or model.num_classes, source))

    def load_folder(self, folder: Path, flags: Flags) -> Base:
        return Base(*load_folder(folder, flags.get("opts", ())))

    def given_model(self, model: nn.Module, flags: Flags) -> Base:
        if not isinstance(model, Mask2Former):
            raise UserError(
                f"`model` is a path or a Mask2Former of `build_mask2former` or `load_checkpoint`, got {type(model).__name__}."
            )
        names = read_list(flags.get("class_names") or "")
        if len(names) != model.num_classes:
            raise UserError(
                f"the model has {model.num_classes} classes, class_names=[...] names {len(names)}; name each, in order."
            )
        return Base(adapters.merge(model), names)

    def widened(self, base: Base, classes: Sequence[str]) -> Base:
        if len(classes) != base.model.num_classes:
            base.model.grow(len(classes))
        return Base(base.model, list(classes))

    # ---- what the other verbs do -------------------------------------------------------------------------

    def scoring(self, loaded: Loaded) -> tuple[Domain, dict[str, tuple[str, ...]]]:
        source, known = from_values(SourceConfig, loaded.flags), loaded.base.classes
        learned = loaded.groups.get("learn", ())
        sets = load_data(source, [c for c in known if c not in learned and not c.startswith("spare_")])
        offered = [c for one in sets for c in one.classes]
        groups, chosen = dict(loaded.groups), loaded.flags.get("classes", "")
        if chosen or not groups:
            shared = [c for c in known if c in offered]
            groups = {"chosen" if chosen else "all": tuple(resolve(chosen, shared, "--classes") if chosen else shared)}
        config = from_values(MaskConfig, loaded.flags)
        return SegmentationDomain(loaded.base.model, known, sets, groups, config, training=False), groups

    def predict(self, loaded: Loaded, files: Sequence[Path], device: torch.device) -> Iterator[Answer]:
        draw, skip = bool(loaded.flags.get("output_dir")), bool(loaded.flags.get("skip_corrupt"))
        return answers(loaded.base.model, loaded.base.classes, files, draw, skip)

    def check(self, text: str) -> tuple[list[str], list[Problem]]:
        return check(text, layouts.load(text))

    def export(self, loaded: Loaded, path: Path, kind: str) -> Path:
        if kind == "detectron2":
            return export_detectron2(loaded.base.model, path)
        model, names = adapters.merge(loaded.base.model), loaded.base.classes
        names = [*names, *(f"spare_{i}" for i in range(len(names), model.num_classes))]
        adapters.save_model(model, path, {"classes": names})
        save_config(path, model, names)
        return path


def _domain(base: Base, sets: Sequence[MaskSet], plan: Plan, settings: Settings) -> SegmentationDomain:
    """The domain of a plan; reads the masks."""
    return SegmentationDomain(base.model, base.classes, sets, plan.groups, settings[MaskConfig], settings.train.seed)


def read_config(source: SourceConfig, words: Sequence[Any]) -> Config:
    """The config of the flags. Raises UserError when no file is named."""
    if not source.config_file:
        raise UserError(
            "which model? Give --config-file, such as semantic-segmentation/configs/ade20k/semantic-segmentation/"
            "swin/maskformer2_swin_base_IN21k_swap.yaml, or --checkpoint with a folder that pretrain.py wrote."
        )
    return load_config(source.config_file, words)


def name_rows(count: int, source: SourceConfig) -> list[str]:
    """Names of a checkpoint's classes: --class-names, or those of the data set with so many classes.

    A head of 160 rows is a published swap's start: 150 classes of ADE20K, the rest spare.
    """
    if source.class_names:
        names = read_list(source.class_names)
        if len(names) > count:
            raise UserError(f"--class-names holds {len(names)} names, but the checkpoint knows {count} classes.")
        return names
    known = {150: class_lists.ADE20K, 160: class_lists.ADE20K, 19: class_lists.CITYSCAPES, 21: class_lists.VOC}
    if count in known:
        return list(known[count])
    if source.data:
        classes = layouts.load(source.data.split(",")[0], read_list(source.data_classes)).classes
        if len(classes) == count:
            return list(classes)
    raise UserError(f"the checkpoint knows {count} classes without names; give them with --class-names a,b,c or @file.")


def load_data(source: SourceConfig, known: Sequence[str]) -> list[MaskSet]:
    """The data that the flags name. Raises UserError when none is named, or a published folder is missing."""
    published = (source.learnset, source.forgetset, source.retainset)
    if any(published) or source.learnsetname:
        if not all((*published, source.learnsetname)):
            raise UserError(
                "the published layout takes --learnsetname, --learnset, --forgetset and --retainset together."
            )
        return [layouts.published(*published, source.learnsetname, known)]
    if not source.data and not source.learn_data:
        raise UserError("which data? Give --data KIND:FOLDER (or --data digits).")
    names, base, more = read_list(source.data_classes), source.data.split(","), source.learn_data.split(",")
    return [layouts.load(text, names) for text in base if text] + [layouts.load(text) for text in more if text]


def occurring(sets: Sequence[MaskSet], cache_dir: str) -> list[str]:
    """Names of the classes that training masks and test masks hold, in the order of the sets' lists."""
    found: dict[str, set[str]] = {"train": set(), "test": set()}
    for one in sets:
        for part, names in found.items():
            names |= {one.classes[c] for counts in scan(getattr(one, part), cache_dir) for c in counts}
    both = found["train"] & found["test"]
    return [c for c in dict.fromkeys(c for one in sets for c in one.classes) if c in both]


def _published_groups(source: SourceConfig, plan: PlanConfig, data: MaskSet, known: Sequence[str]) -> None:
    """Fills --learn and --forget from the folders where they are not given: new classes, and the classes that the
    forget folder's masks hold."""
    if not plan.learn:
        plan.learn = ",".join(data.classes[len(known) :])
    if not plan.forget:
        inside = [i for i in data.train if Path(source.forgetset).expanduser() in Path(i.mask).parents]
        rows = sorted({row for counts in scan(inside) for row in counts})
        plan.forget = ",".join(data.classes[row] for row in rows if row < len(known))


SESSION = SegmentationSession()
