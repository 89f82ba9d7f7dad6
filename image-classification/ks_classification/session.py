"""Image classification for the commands: flags, models and data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import adapters, hub, lora
from common.chance import ChanceConfig
from common.config import from_values, peek
from common.domain import Domain
from common.errors import UserError
from common.frozen import FrozenConfig
from common.knobs import knob
from common.lora import LoraConfig
from common.onnx_file import Graph, OnnxFile
from common.plan import Plan, pretrain_plan
from common.plan_file import PlanConfig, plan_from
from common.session import Answer, Base, Flags, Loaded, Opening, Session
from common.settings import Settings
from common.splits import read_list, resolve
from ks_classification.chance import refuse_chance
from ks_classification.check import check, fix
from ks_classification.checkpoints import onnx_graph
from ks_classification.checkpoints.export import export_published, export_timm, export_torchvision
from ks_classification.data import images as data
from ks_classification.data.imagenet import as_called
from ks_classification.data.usual import say_views, usual_views
from ks_classification.domain import ClassificationDomain, ImageConfig
from ks_classification.models import build, layers
from ks_classification.models.hub import HubClassifier
from ks_classification.models.hybrid import load_stem
from ks_classification.predict import PredictConfig, answers
from ks_classification.source import (
    SourceConfig,
    base_model,
    check_folder_flags,
    from_hub,
    narrow,
    normalized,
    spec_from,
)

SWAP_ONLY = ("checkpoint", "class_names", "head_rows", "learn_data", "lora_merged", "narrow_head")


@dataclass
class BaseConfig:
    """What the base model shall know."""

    classes: str = knob("", "classes of --data to train on: a,b,c or @file; default all")


class ClassificationSession(Session):
    """Vision transformers and folders of images."""

    name = "classification"
    summaries = {
        "swap": "Learn, forget and retain image classes: one run, from a pretrained model to a report.",
        "pretrain": "Train a base model from scratch on named classes.",
        "evaluate": "Score a finished run again, on its own groups of classes: the same numbers as in its report.",
        "prove": "Attack what a finished run says it forgot, against models that never saw it: verdicts, proof.json and a page.",
        "predict": "Name what is on pictures: the most probable classes of each.",
        "check": "List everything that is wrong with images before they are trained on; exit code 2 if a run would stop.",
        "export": "Write the model of a run, adapters merged: under published keys, or as a folder for --checkpoint.",
    }
    examples = {
        "swap": "ks-classification swap --data digits --checkpoint results/base --learn 8,9 --forget 0,1",
        "pretrain": "ks-classification pretrain --data digits --no-flip --classes 0,1,2,3,4,5,6,7 "
        "--img-size 16 \\\n    --patch-size 4 --model-args embed_dim=64,depth=6,num_heads=4 --lr 2e-3 --output-dir results/base",
        "evaluate": "ks-classification evaluate results/classification/fltf-mask_replay-seed0",
        "prove": "ks-classification prove results/classification/fltf-mask_replay-seed0 --references 3",
        "predict": "ks-classification predict results/base holiday/ cat.jpg --json",
        "check": "ks-classification check photos more",
        "export": "ks-classification export results/classification/fltf-mask_replay-seed0 swapped.pth",
    }
    source, view = SourceConfig, ImageConfig
    swap_flags, pretrain_flags, predict_flags = (ChanceConfig,), (BaseConfig,), (PredictConfig,)
    everyday = ("model", "pretrained", "class_names", "img_size")
    defaults = {
        "swap": {"lr": 3e-3},  # adapters; methods that train whole models want a tenth of it
        "pretrain": {"method": "finetune", "epochs": 20, "batch_size": 64, "model": "vit_tiny_patch16_224"},
    }
    reference = Path(__file__).parent / "reference.yaml"
    data_flags = ("learn_data",)
    shared_flags = ("stem_weights",)
    base_flags = own_flags = ("pretrained", "cache_dir")
    suffixes = data.SUFFIXES
    formats = ("published", "folder", "timm", "torchvision")
    check, fix = staticmethod(check), staticmethod(fix)

    def defaults_for(self, verb: str, argv: Sequence[str]) -> Mapping[str, object]:
        known = peek(argv, "--data", "--checkpoint")
        return {**super().defaults_for(verb, argv), **usual_views(known.data, known.checkpoint)}

    def open_swap(self, settings: Settings) -> Opening:
        source, chosen = settings[SourceConfig], settings[PlanConfig]
        if source.stem_weights:
            raise UserError("`--stem-weights` is for pretrain.py; a swap takes the stem of its base model.")
        if not chosen.plan:
            chosen.chosen_order()
        say_views(str(source.data), settings[ImageConfig])
        base_images = self._images(settings)
        images = base_images
        if source.learn_data:
            images = base_images.joined(data.load(source.learn_data, source.cache_dir, not settings.record.dry_run))
        base = self._base(settings, base_images)
        new = [c for c in images.classes if c not in base.classes]
        known = [c for c in base.classes if c in images.classes]
        groups = {name: as_called(getattr(chosen, name), [*known, *new]) for name in ("learn", "forget", "retain")}
        plan = plan_from(replace(chosen, **groups), known, new, self.gone(settings.flags))
        layers.set_dropout(base.model, source.dropout)
        if settings.method.scope(settings.method_config) == "adapter":
            _try_adapters(base.model, settings.lora)
        return Opening(plan, lambda: _checked(_domain(base, images, plan, settings), plan, settings))

    def open_pretrain(self, settings: Settings) -> Opening:
        source = settings[SourceConfig]
        for name in SWAP_ONLY:
            if getattr(source, name):
                raise UserError(
                    f"`--{name.replace('_', '-')}` is for swap.py; pretrain.py makes a new model of --model."
                )
        images, classes = self._images(settings), settings[BaseConfig].classes
        classes = resolve(classes, images.classes, "--classes") if classes else list(images.classes)
        torch.manual_seed(settings.train.seed)
        if hub.is_hub(source.model):
            model, spec = from_hub(source, classes)
        else:
            spec = spec_from(source, classes)
            model = build.build(spec, pretrained=source.pretrained)
        if spec.name == build.HYBRID and not source.stem_weights:
            raise UserError(
                f"the stem of {spec.name} does not train: name its weights, a mobilenet_v2 of torchvision, with "
                "--stem-weights, or `--stem-weights random` for one at random."
            )
        if source.stem_weights not in ("", "random"):
            load_stem(model, source.stem_weights)
        layers.set_dropout(model, source.dropout)
        plan = pretrain_plan(spec.classes)
        return Opening(plan, lambda: _domain(Base(model, spec.classes, spec), images, plan, settings))

    @staticmethod
    def _images(settings: Settings) -> data.ImageSet:
        source = settings[SourceConfig]
        if settings.data is not None:
            return data.from_datasets(settings.data, read_list(source.data_classes))
        fetch = bool(settings.flags.get("fetch", True)) and not settings.record.dry_run
        return data.load(source.data, source.cache_dir, fetch)

    def _base(self, settings: Settings, images: data.ImageSet) -> Base:
        if settings.model is not None:
            return self.given_model(settings.model, settings.flags)
        source = settings[SourceConfig]
        if not (Path(source.checkpoint or "?") / "adapter").is_dir():
            model, spec = base_model(source, images, bool(settings.flags.get("fetch_model", True)))
            return Base(model, spec.classes, spec)
        check_folder_flags(source, ["pretrained"])
        base = self.base(settings.flags)  # an earlier swap
        if source.narrow_head:
            narrow(base.model, base.about, images)
        return base._replace(classes=base.about.classes)

    def given_model(self, model: nn.Module, flags: Flags) -> Base:
        spec = build.given_spec(model, read_list(flags.get("class_names", "")), int(flags.get("img_size") or 0))
        return Base(copy.deepcopy(model), spec.classes, normalized(spec, from_values(SourceConfig, flags)))

    def base_model(self, flags: Flags) -> Base:
        source = from_values(SourceConfig, flags)
        images = data.ImageSet([], [], [])
        if source.data and (source.narrow_head or "data" in flags):
            images = data.load(source.data, source.cache_dir, flags.get("fetch", True))
        model, spec = base_model(source, images, flags.get("fetch_model", True))
        return Base(model, spec.classes, spec)

    def to_be_fetched(self, flags: Flags) -> str:
        return data.to_be_fetched(str(flags.get("data") or ""), str(flags.get("cache_dir") or "data"))

    def joined(self, recorded: Flags, given: Flags) -> dict[str, Any]:
        if "checkpoint" in given and hub.is_hub(str(recorded.get("model", ""))):
            recorded = {**recorded, "model": ""}
        return super().joined(recorded, given)

    def load_folder(self, folder: Path, flags: Flags) -> Base:
        model, spec = build.load_folder(folder)
        return Base(model, spec.classes, spec)

    def widened(self, base: Base, classes: Sequence[str]) -> Base:
        base.about.classes = list(classes)
        return Base(layers.widen(base.model, len(classes), names=list(classes)), list(classes), base.about)

    def without(self, base: Base, classes: Sequence[str]) -> Base:
        rows = [i for i, name in enumerate(base.classes) if name not in classes]
        layers.select_rows(base.model, rows)
        base.about.classes = [base.classes[i] for i in rows]
        return Base(base.model, base.about.classes, base.about)

    def scoring(self, loaded: Loaded) -> tuple[Domain, dict[str, tuple[str, ...]]]:
        flags = loaded.flags
        self.need_data(flags)
        places = ",".join(filter(None, (flags.get("data"), flags.get("learn_data"))))
        images = data.load(places, flags.get("cache_dir", "data"), flags.get("fetch", True))
        groups = loaded.scored(images.classes)
        config, frozen = from_values(ImageConfig, {**flags, "label_smoothing": 0.0}), from_values(FrozenConfig, flags)
        domain = ClassificationDomain(
            loaded.base.about, images, groups, config, base=loaded.base.model, training=False, frozen=frozen
        )
        domain.freeze(loaded.base.model)
        return domain, groups

    def predict(self, loaded: Loaded, files: Sequence[Path], device: torch.device) -> Iterator[Answer]:
        config, images = from_values(PredictConfig, loaded.flags), from_values(ImageConfig, loaded.flags)
        return answers(loaded.base.model, loaded.base.about, files, images, config, device)

    def own_format(self, loaded: Loaded) -> str:
        return "folder" if isinstance(loaded.base.model, HubClassifier) else self.formats[0]

    def export(self, loaded: Loaded, path: Path, kind: str) -> Path:
        merged = adapters.merge(loaded.base.model)
        if isinstance(merged, HubClassifier):
            if kind != "folder":
                raise UserError(f"a model of transformers is not written as {kind}; give --to folder.")
            merged.save(path, loaded.base.classes)
        elif kind == "published":
            export_published(merged, path, merge=True)
        elif kind == "timm":
            export_timm(merged, path, loaded.base.about)
        elif kind == "torchvision":
            export_torchvision(merged, path, loaded.base.about)
        else:
            adapters.save_model(merged, path, {"classes": loaded.base.classes})
            build.save_folder(path, loaded.base.about)
        return path

    def graph(self, loaded: Loaded) -> Graph:
        return onnx_graph.graph(adapters.merge(loaded.base.model), loaded.base.about)

    def from_graph(self, file: OnnxFile) -> Base:
        model, spec = onnx_graph.read(file)
        return Base(model, spec.classes, spec)


def _domain(base: Base, images: data.ImageSet, plan: Plan, settings: Settings) -> ClassificationDomain:
    """The domain of a plan; reads the images."""
    missing = [c for group in plan.missing for c in plan.groups[group]]
    forgotten = {name for action, names in plan.steps if action == "forget" for name in names}
    roles = dict.fromkeys(plan.groups, "retain") | dict.fromkeys(forgotten, "forget")
    roles |= dict.fromkeys(plan.learned_groups, "learn")
    seed, config = settings.train.seed, settings[ImageConfig]
    domain = ClassificationDomain(
        base.about, images, plan.groups, config, base=base.model, seed=seed, missing=missing, roles=roles,
        frozen=settings[FrozenConfig],
    )  # fmt: skip
    unused = [f"unused_{i}" for i in range(len(domain.classes), settings[SourceConfig].head_rows)]
    domain.classes = domain.classes.extended(unused)
    return domain


def _checked(domain: ClassificationDomain, plan: Plan, settings: Settings) -> ClassificationDomain:
    """The domain, unless its base model does not know its own classes. Raises UserError."""
    if not settings[ChanceConfig].allow_chance:
        refuse_chance(domain, plan, settings.train)
    return domain


def _try_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Puts the adapters on a copy, so that a wrong rank or position shows before the images are read."""
    lora.inject(copy.deepcopy(model), lora.select(layers.adapter_targets(model), config, model), config.lora_rank, 1.0)


SESSION = ClassificationSession()
