"""Semantic segmentation for the commands: flags, models and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import adapters, hub
from common.chance import ChanceConfig, refuse_chance
from common.config import Parser, from_values
from common.domain import Domain
from common.errors import UserError
from common.files import user_path
from common.frozen import FrozenConfig
from common.knobs import knob
from common.onnx_file import Graph, OnnxFile
from common.plan import Plan, pretrain_plan
from common.plan_file import PlanConfig, plan_from
from common.schema import typed
from common.session import Answer, Base, Flags, Loaded, Opening, Session
from common.settings import Settings
from common.splits import read_list, resolve
from ks_segmentation.check import check, fix
from ks_segmentation.checkpoints import onnx_graph
from ks_segmentation.checkpoints.folder import check_class_count, load_folder, load_hub
from ks_segmentation.checkpoints.load import CLASSES_KEY, class_count, load_checkpoint, load_weights
from ks_segmentation.checkpoints.read_file import read_weights
from ks_segmentation.checkpoints.record import MODEL_FILE
from ks_segmentation.config import words as config_words
from ks_segmentation.config.load import load_config
from ks_segmentation.data.own_folders import SUFFIXES
from ks_segmentation.data.sets import MaskSet, from_datasets
from ks_segmentation.domain import MaskConfig, SegmentationDomain
from ks_segmentation.models.mask2former.model import build_mask2former
from ks_segmentation.models.parts.segmenter import Segmenter
from ks_segmentation.predict import answers
from ks_segmentation.source import (
    PUBLISHED,
    SourceConfig,
    load_data,
    name_rows,
    occurring,
    published_groups,
    read_config,
)

# What suits segmentation where no config says otherwise.
OURS = {
    "batch_size": 4, "lr": 1e-3, "clip": 1.0, "bound": 5.0, "sparsity_weight": 0.01, "learn_weight": 0.9,
    "forget_weight": 1.0,
}  # fmt: skip


@dataclass
class BaseConfig:
    """What the base model shall know."""

    classes: str = knob("", "classes of --data to train on: a,b,c or @file; default all")
    backbone_weights: str = knob("", "pretrained backbone (.pth, .pkl); default MODEL.WEIGHTS")


class SegmentationSession(Session):
    """Segmenters and images with class-id masks."""

    name = "segmentation"
    summaries = {
        "swap": "Learn, forget and retain the classes of a segmenter: one run, from a pretrained model to a report.",
        "pretrain": "Train a segmenter on named classes.",
        "evaluate": "Score a finished run, or a checkpoint: mIoU, fwIoU, mACC (total of ACC), pACC and every class's IoU.",
        "prove": "Attack what a finished run says it forgot, against models that never saw it: verdicts, proof.json and a page.",
        "predict": "Say which classes images hold, and write a PNG of class ids and an overlay for each.",
        "check": "List everything that is wrong with images and masks before they are trained on; exit code 2 if a run "
        "would stop.",
        "export": "Write the model of a run, adapters merged: as a detectron2 checkpoint, or as a folder for --checkpoint (of a "
        "model of transformers: one that from_pretrained reads).",
    }
    examples = {
        "swap": "ks-segmentation swap --config-file swin_tiny.yaml --data ade20k:ADEChallengeData2016 \\\n"
        "    --learn-data voc:VOC2012 --learn sheep,cow --forget wall,sky MODEL.WEIGHTS model.pkl",
        "pretrain": "ks-segmentation pretrain --config-file semantic-segmentation/configs/digits.yaml "
        "\\\n    --data digits --classes ground,0,1,2,3,4,5,6,7 --steps 2400 --batch-size 16 --lr 1e-3 --output-dir results/base",
        "evaluate": "ks-segmentation evaluate results/segmentation/fltf-mask_replay-seed0",
        "prove": "ks-segmentation prove results/segmentation/fltf-mask_replay-seed0",
        "predict": "ks-segmentation predict results/base street/ cat.jpg --output-dir answers",
        "check": "ks-segmentation check ade20k:ADEChallengeData2016 voc:VOC2012",
        "export": "ks-segmentation export results/segmentation/fltf-mask_replay-seed0 swapped.pth",
    }
    source, view = SourceConfig, MaskConfig
    swap_flags, pretrain_flags = (ChanceConfig,), (BaseConfig,)
    everyday = ("config_file", "model", "opts", "class_names", "num_gpus")
    defaults = {
        "pretrain": {"method": "finetune", "epochs": 20, "lr": 1e-4, "learn_weight": 1.0, "sparsity_weight": 0.0}
    }
    reference = Path(__file__).parent / "reference.yaml"
    data_flags = ("learn_data", "data_classes", *PUBLISHED)
    base_flags = ("opts",)
    own_flags = cache_flags = ("cache_dir",)
    lists = ("opts",)
    suffixes = SUFFIXES
    formats = ("detectron2", "folder")
    check, fix = staticmethod(check), staticmethod(fix)

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
        words = [*typed(recorded.get("opts", []), list[Any], "`--set` of the run's record"), *given.get("opts", ())]
        if "checkpoint" in given:
            recorded = {**recorded, "model": ""}
        return {**super().joined(recorded, given), "opts": words}

    # ---- runs --------------------------------------------------------------------------------------------

    def open_swap(self, settings: Settings) -> Opening:
        source, chosen, masks = settings[SourceConfig], settings[PlanConfig], settings[MaskConfig]
        if not (chosen.plan or source.learnsetname):
            chosen.chosen_order()
        if settings.model is not None:
            base = self.given_model(settings.model, settings.flags)
        else:
            base = self.base(settings.flags)
        if settings.data is not None:
            sets = [from_datasets(settings.data, read_list(source.data_classes))]
        else:
            sets = load_data(source, base.classes)
        if source.learnsetname:
            published_groups(source, chosen, sets[0], base.classes)
        offered = occurring(sets, masks.cache_dir)
        known = [c for c in base.classes if c in offered]
        gone = self.gone(settings.flags)
        plan = plan_from(chosen, known, [c for c in offered if c not in base.classes], gone)
        config_words.tell_unused(settings.flags)

        def domain() -> SegmentationDomain:
            own = _domain(base, sets, plan, settings)
            if not settings[ChanceConfig].allow_chance:
                refuse_chance(own, plan, base.classes, settings.train)
            return own

        return Opening(plan, domain)

    def open_pretrain(self, settings: Settings) -> Opening:
        source, base = settings[SourceConfig], settings[BaseConfig]
        for name in ("checkpoint", "class_names", *PUBLISHED):
            if getattr(source, name):
                raise UserError(
                    f"`--{name.replace('_', '-')}` is for swap.py; pretrain.py makes a new model of --config-file, or "
                    "goes on with --model hf:FOLDER."
                )
        sets = load_data(source, ())
        offered = list(dict.fromkeys(c for one in sets for c in one.classes))
        classes = resolve(base.classes, offered, "--classes") if base.classes else offered
        torch.manual_seed(settings.train.seed)
        check_class_count(settings.flags.get("opts", ()), len(classes))
        model = _for_pretraining(source, base, settings.flags.get("opts", ()), len(classes))
        config_words.tell_unused(settings.flags)
        plan = pretrain_plan(classes)
        return Opening(plan, lambda: _domain(Base(model, classes), sets, plan, settings))

    # ---- models ------------------------------------------------------------------------------------------

    def base_path(self, flags: Flags) -> str:
        if flags.get("checkpoint") or not flags.get("config_file"):
            return super().base_path(flags)
        return load_config(flags["config_file"], flags.get("opts", ())).MODEL.WEIGHTS

    def base_model(self, flags: Flags) -> Base:
        source, words = from_values(SourceConfig, flags), flags.get("opts", ())
        path = Path(source.checkpoint)
        if source.model or (not source.config_file and hub.is_folder(source.checkpoint or "?")):
            return _from_hub(source, words, flags.get("fetch_model", True))
        for folder in (path, path / "model"):
            if source.checkpoint and (folder / MODEL_FILE).is_file():
                if source.class_names or "MODEL.WEIGHTS" in words[::2]:
                    name = "`--class-names`" if source.class_names else "MODEL.WEIGHTS"
                    raise UserError(f"{name} has no effect on {folder}, which has its own; leave it out.")
                return Base(*load_folder(folder, words))
        if source.checkpoint and not user_path(path).exists():
            raise UserError(f"checkpoint {path}: no such file or folder.")
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
        if not isinstance(model, Segmenter):
            raise UserError(
                f"`model` is a path or a Segmenter of `build_mask2former`, `load_checkpoint` or `load_hub`, got a "
                f"{type(model).__name__}."
            )
        names = read_list(flags.get("class_names") or "")
        if len(names) != model.num_classes:
            raise UserError(
                f"the model has {model.num_classes} classes, class_names=[...] names {len(names)}; name each, in order."
            )
        return Base(adapters.merge(model), names)

    def widened(self, base: Base, classes: Sequence[str]) -> Base:
        base.model.set_rows(range(base.model.num_classes), len(classes) - base.model.num_classes)
        return Base(base.model, list(classes))

    def without(self, base: Base, classes: Sequence[str]) -> Base:
        kept = [row for row, name in enumerate(base.classes) if name not in classes]
        base.model.set_rows(kept)
        return Base(base.model, [base.classes[row] for row in kept])

    # ---- what the other verbs do -------------------------------------------------------------------------

    def scoring(self, loaded: Loaded) -> tuple[Domain, dict[str, tuple[str, ...]]]:
        source, known = from_values(SourceConfig, loaded.flags), loaded.base.classes
        learned = loaded.groups.get("learn", ())
        sets = load_data(source, [c for c in known if c not in learned and not c.startswith("spare_")])
        offered = {c for one in sets for c in one.classes}
        groups = loaded.scored([c for c in known if c in offered])
        config = from_values(MaskConfig, loaded.flags)
        frozen = from_values(FrozenConfig, loaded.flags)
        domain = SegmentationDomain(loaded.base.model, known, sets, groups, config, training=False, frozen=frozen)
        domain.freeze(loaded.base.model)
        return domain, groups

    def predict(self, loaded: Loaded, files: Sequence[Path], device: torch.device) -> Iterator[Answer]:
        draw, skip = bool(loaded.flags.get("output_dir")), bool(loaded.flags.get("skip_corrupt"))
        return answers(loaded.base.model, loaded.base.classes, files, draw, skip)

    def own_format(self, loaded: Loaded) -> str:
        return loaded.base.model.own_format

    def export(self, loaded: Loaded, path: Path, kind: str) -> Path:
        model, names = loaded.base.model, loaded.base.classes
        return model.export(path, kind, [*names, *(f"spare_{i}" for i in range(len(names), model.num_classes))])

    def graph(self, loaded: Loaded) -> Graph:
        return onnx_graph.graph(adapters.merge(loaded.base.model))

    def from_graph(self, file: OnnxFile) -> Base:
        return Base(onnx_graph.in_place_of(file), file.classes)


def _from_hub(source: SourceConfig, words: Sequence[Any], fetch: bool) -> Base:
    """The model of --model hf:..., or of a transformers folder that --checkpoint names."""
    if source.model and (source.checkpoint or source.config_file):
        raise UserError("`--model` names model and weights; leave --checkpoint and --config-file out.")
    if source.model and not hub.is_hub(source.model):
        raise UserError(f"`--model {source.model}` must be hf:FOLDER or hf:NAME; other models go by --config-file.")
    model, names = load_hub(source.model or source.checkpoint, words, fetch)
    if source.class_names or not names:
        names = name_rows(model.num_classes, source)
    return Base(model, names)


def _for_pretraining(source: SourceConfig, base: BaseConfig, words: Sequence[Any], count: int) -> Segmenter:
    """A model with `count` class rows that know nothing: of --config-file, or of --model with its other weights."""
    if source.model:
        if base.backbone_weights or source.config_file:
            raise UserError("`--model` names model and weights; leave --backbone-weights and --config-file out.")
        hub_model, _ = load_hub(source.model, words, random=True)
        hub_model.set_rows([], count)
        for name in hub_model.class_parameters():
            nn.init.normal_(hub_model.get_parameter(name), std=0.02)
        return hub_model
    config = read_config(source, [*words, CLASSES_KEY, count])
    model = build_mask2former(config)
    if base.backbone_weights or config.MODEL.WEIGHTS:
        load_weights(model, base.backbone_weights or config.MODEL.WEIGHTS, partial=True)
    return model


def _domain(base: Base, sets: Sequence[MaskSet], plan: Plan, settings: Settings) -> SegmentationDomain:
    """The domain of a plan; reads the masks."""
    config, frozen = settings[MaskConfig], settings[FrozenConfig]
    return SegmentationDomain(base.model, base.classes, sets, plan.groups, config, settings.train.seed, frozen=frozen)


SESSION = SegmentationSession()
