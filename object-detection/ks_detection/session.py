"""Object detection for the commands: flags, models and data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common import adapters, hub
from common.chance import ChanceConfig, refuse_chance
from common.config import from_values, peek
from common.domain import ClassTable, Domain
from common.errors import UserError
from common.frozen import FrozenConfig
from common.knobs import knob
from common.onnx_file import Graph, OnnxFile
from common.pictures import SUFFIXES
from common.plan import pretrain_plan
from common.plan_file import PlanConfig, plan_from
from common.session import Answer, Base, Flags, Loaded, Opening, Session
from common.settings import Settings
from common.splits import resolve, shorten
from ks_detection.check import check
from ks_detection.checkpoints import onnx_graph
from ks_detection.checkpoints.backbone import load_backbone
from ks_detection.checkpoints.load import load_checkpoint
from ks_detection.cl_detr import ForgettingConfig, forgetting_plan
from ks_detection.data import scenes
from ks_detection.data.cleaned import fix
from ks_detection.domain import MODEL_FILE, DetectionDomain
from ks_detection.models.hub.families import FAMILIES
from ks_detection.models.hub.files import detector_of
from ks_detection.models.parts.detector import Detector, extend_classes
from ks_detection.predict import PredictConfig, answers
from ks_detection.published import tidy
from ks_detection.source import SourceConfig, base_model, fresh_model, hub_folder, name_rows, open_data
from ks_detection.view import ImageConfig


@dataclass
class BaseConfig:
    """What the base model shall know."""

    classes: str = knob("", "classes of --data to train on: a,b,c or @file; default all")
    backbone_weights: str = knob(
        "", "weights of the backbone alone, such as torchvision's resnet50 or mobilenet_v2 .pth"
    )
    freeze_backbone: bool = knob(False, "train all but the backbone, whose outputs are then kept where views repeat")
    half: bool = knob(False, "store the result in float16, half the size")


class DetectionSession(Session):
    """DINO, Deformable DETR and the detectors of transformers on images with boxes."""

    name = "detection"
    summaries = {
        "swap": "Learn, forget and retain object classes: one run, from a pretrained detector to a report.",
        "pretrain": "Train a detector on named classes, from scratch or from a checkpoint.",
        "evaluate": "Score a finished run, or a checkpoint: COCO AP per group of classes and per class.",
        "prove": "Attack what a finished run says it forgot, against models that never saw it: verdicts, proof.json and a page.",
        "predict": "Find objects in images: class, score and box (left, top, right, bottom in pixels) of each.",
        "check": "List everything that is wrong with images and boxes before they are trained on; exit code 2 if a run would stop.",
        "export": "Write the detector of a run, adapters merged, as a file or folder that the original code loads.",
    }
    examples = {
        "swap": "ks-detection swap --num-gpus 2 -c config/DINO/DINO_4scale.py \\\n"
        "    --checkpoint checkpoint0011_4scale.pth --data coco --learn-data birds --learn bird2 --forget cat,dog",
        "pretrain": "ks-detection pretrain --data mydata -c object-detection/configs/mobilenet_small.py \\\n"
        "    --output-dir results/base",
        "evaluate": "ks-detection evaluate results/detection/fltf-mask_replay-seed0 --curves curves.svg",
        "prove": "ks-detection prove results/detection/fltf-mask_replay-seed0 --budget full",
        "predict": "ks-detection predict results/detection/fltf-mask_replay-seed0 photos/ --output-dir drawn",
        "check": "ks-detection check mydata",
        "export": "ks-detection export results/detection/fltf-mask_replay-seed0 swapped.pth",
    }
    source, view = SourceConfig, ImageConfig
    swap_flags, pretrain_flags, predict_flags = (ForgettingConfig, ChanceConfig), (BaseConfig,), (PredictConfig,)
    everyday = ("model", "config_file", "class_names", "mixed", "test_size")
    defaults = {
        "swap": {
            "batch_size": 4, "lr": 5e-4, "weight_decay": 1e-4, "bound": 8.0, "forget_weight": 0.3, "learn_weight": 0.9,
            "sparsity_weight": 0.01, "hold_weight": 2.0,
        },  # for adapters; --reference has those of the published runs
        "pretrain": {"method": "finetune", "epochs": 12, "batch_size": 2, "lr": 1e-4, "weight_decay": 1e-4, "clip": 0.1},
    }  # fmt: skip
    reference = Path(__file__).parent / "reference.yaml"
    data_flags = ("learn_data", "forget_data", "retain_data")
    suffixes = SUFFIXES
    base_flags = ("model",)
    formats = ("official", "official-half", "transformers")
    check, fix = staticmethod(check), staticmethod(fix)

    def defaults_for(self, verb: str, argv: Sequence[str]) -> Mapping[str, object]:
        view = scenes.VIEW if peek(argv, "--data").data.partition(":")[0] == "digits" else {}
        return {**super().defaults_for(verb, argv), **view}

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
        model = (self.base(flags) if given is None else self.given_model(given, flags)).model
        names = model.class_table.names
        known, new = [c for c in names if c in data.classes], [c for c in data.classes if c not in names]
        if not known:
            raise UserError(
                f"the data shows none of the checkpoint's classes: {shorten(names)}; --data shows these, and --learn-data new ones."
            )
        plan = forgetting_plan(forgetting, chosen, known) or plan_from(chosen, known, new, self.gone(flags))
        images, seed = settings[ImageConfig], settings.train.seed

        def domain() -> DetectionDomain:
            own = DetectionDomain(model, data, dict(plan.groups), images, seed, frozen=settings[FrozenConfig])
            if not settings[ChanceConfig].allow_chance:
                refuse_chance(own, plan, names, settings.train)
            return own

        return Opening(plan, domain)

    def open_pretrain(self, settings: Settings) -> Opening:
        source, wanted = settings[SourceConfig], settings[BaseConfig]
        data, _ = open_data(source, settings.data)
        classes = tuple(resolve(wanted.classes, data.classes, "--classes") if wanted.classes else data.classes)
        torch.manual_seed(settings.train.seed)
        fetch = bool(settings.flags.get("fetch_model", True))
        folder = hub_folder(source, fetch)
        if source.checkpoint or (folder is not None and hub.has_weights(folder)):
            model = self.base(settings.flags).model
        else:
            ids = tuple(data.ids.get(name, row) for row, name in enumerate(classes))
            model = fresh_model(source, classes, ids, fetch)
        if wanted.backbone_weights:
            load_backbone(model, wanted.backbone_weights)
        if wanted.freeze_backbone:
            model.backbone.requires_grad_(False)
        plan, images, seed = pretrain_plan(classes), settings[ImageConfig], settings.train.seed
        return Opening(
            plan,
            lambda: DetectionDomain(
                model, data, dict(plan.groups), images, seed, half=wanted.half, frozen=settings[FrozenConfig]
            ),
        )

    # ---- models ------------------------------------------------------------------------------------------

    def base(self, flags: Flags) -> Base:
        """Raises UserError for flags that would be without effect on an earlier swap."""
        found = super().base(flags)
        strange = [name for name in ("config_file", "options", "ema", "class_names") if flags.get(name)]
        if strange and (Path(flags["checkpoint"] or "?") / "adapter").is_dir():
            raise UserError(
                f"`--{strange[0].replace('_', '-')}` is for other checkpoints than the run of an earlier swap."
            )
        return found

    def base_path(self, flags: Flags) -> str:
        path = super().base_path(flags)
        return "" if hub.is_hub(path) else path

    def base_model(self, flags: Flags) -> Base:
        return _named(base_model(from_values(SourceConfig, flags), bool(flags.get("fetch_model", True))))

    def load_folder(self, folder: Path, flags: Flags) -> Base:
        return _named(load_checkpoint(folder / MODEL_FILE))

    def widened(self, base: Base, classes: Sequence[str]) -> Base:
        model = extend_classes(base.model, len(classes))
        model.class_table = ClassTable(tuple(classes), model.class_table.ids)
        return _named(model)

    def without(self, base: Base, classes: Sequence[str]) -> Base | None:
        if base.model.fixed_rows:
            return None
        table = base.model.class_table
        kept = [row for row, name in enumerate(table.names) if name not in classes]
        base.model.set_rows(kept)
        ids = tuple(table.ids[row] for row in kept if row < len(table.ids))
        base.model.class_table = ClassTable(tuple(table.names[row] for row in kept), ids)
        return _named(base.model)

    def given_model(self, model: nn.Module, flags: Flags) -> Base:
        if getattr(getattr(model, "config", None), "model_type", None) in FAMILIES:
            model = detector_of(copy.deepcopy(model))
        elif isinstance(model, Detector):
            model = copy.deepcopy(model)
        else:
            raise UserError(
                f"a {type(model).__name__} is no detector known here; make one with build_detector or load_checkpoint."
            )
        model.class_table = name_rows(model, from_values(SourceConfig, flags))
        return _named(model)

    # ---- what the other verbs do -------------------------------------------------------------------------

    def scoring(self, loaded: Loaded) -> tuple[Domain, dict[str, tuple[str, ...]]]:
        flags, model = loaded.flags, loaded.base.model
        self.need_data(flags)
        data, _ = open_data(from_values(SourceConfig, flags))
        groups = loaded.scored(data.classes)
        config, frozen = from_values(ImageConfig, flags), from_values(FrozenConfig, flags)
        domain = DetectionDomain(model, data, groups, config, training=False, frozen=frozen)
        domain.freeze(model)
        return domain, groups

    def predict(self, loaded: Loaded, files: Sequence[Path], device: torch.device) -> Iterator[Answer]:
        config, recipe = from_values(PredictConfig, loaded.flags), from_values(ImageConfig, loaded.flags).recipe()
        skip, draw = bool(loaded.flags.get("skip_corrupt")), bool(loaded.flags.get("output_dir"))
        return answers(loaded.base.model, files, recipe, config, device, skip, draw)

    def export(self, loaded: Loaded, path: Path, kind: str) -> Path:
        return loaded.base.model.export(path, kind)

    def graph(self, loaded: Loaded) -> Graph:
        return onnx_graph.graph(adapters.merge(loaded.base.model), from_values(ImageConfig, loaded.flags).recipe())

    def from_graph(self, file: OnnxFile) -> Base:
        return _named(onnx_graph.OnnxDetector(file))


def _named(model: nn.Module) -> Base:
    return Base(model, list(model.class_table.names))


SESSION = DetectionSession()
