"""From flags to a domain and a plan: what swap.py, pretrain.py, evaluate.py and predict.py share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import adapters
from common.domain import ClassTable
from common.errors import UserError
from common.lora import adapters as find_adapters
from common.plan import Plan, PlanConfig, plan_from
from common.record import read_json
from common.splits import read_list
from ks_detection.checkpoints.extend import extend_classes
from ks_detection.checkpoints.load import load_checkpoint
from ks_detection.cl_detr import ForgettingConfig, forgetting_plan
from ks_detection.coco_names import COCO
from ks_detection.data.folders import load
from ks_detection.data.records import DetectionSet
from ks_detection.deformable_detr.folder import is_folder
from ks_detection.detectors import Config, build_detector, changed, config_from
from ks_detection.dino.config_file import read_config, read_options
from ks_detection.domain import DetectionDomain, PictureConfig

MODEL_FILE = "model.pth"  # what pretrain.py and full fine-tuning leave in a run folder


@dataclass
class SourceConfig:
    """Model and data."""

    data: str = field(
        default="digits",
        metadata={"help": "pictures: a COCO, VOC or YOLO folder, several separated by commas, or digits"},
    )
    learn_data: str = field(default="", metadata={"help": "folder of the classes to learn (three-folder layout)"})
    forget_data: str = field(default="", metadata={"help": "folder of the classes to forget (three-folder layout)"})
    retain_data: str = field(default="", metadata={"help": "folder of the classes to retain (three-folder layout)"})
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


def model_config(source: SourceConfig, **changes: Any) -> Config | None:
    """The config of --config-file and --options, or None without a file."""
    if not source.config_file:
        return None
    return config_from(read_config(source.config_file, source.options.split()) | changes)


def own_changes(source: SourceConfig) -> dict[str, Any]:
    """The values of --options where no --config-file takes them: they change the checkpoint's own config."""
    return {} if source.config_file else read_options(source.options.split())


def base_model(source: SourceConfig) -> nn.Module:
    """The pretrained detector with names for its rows; adapters of a published swap are merged.

    Raises:
        UserError: nothing to load, or what is there does not fit the config.
    """
    if not source.checkpoint:
        raise UserError("which detector? Give --checkpoint: an official .pth file, or a run folder of pretrain.py.")
    path = Path(source.checkpoint)
    if path.is_dir() and not is_folder(path):
        path = next((p for p in (path / "model" / MODEL_FILE, path / MODEL_FILE) if p.is_file()), path / MODEL_FILE)
    model = load_checkpoint(path, model_config(source), ema=source.ema, changes=own_changes(source))
    if find_adapters(model):
        table = model.class_table
        model = adapters.merge(model)
        model.config.lora_rank, model.class_table = 0, table
    model.class_table = name_rows(model, source)
    return model


def name_rows(model: nn.Module, source: SourceConfig) -> ClassTable:
    """Names of the checkpoint's rows: its own, --class-names, or COCO's where there are at least 91 rows."""
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


def open_data(source: SourceConfig) -> tuple[DetectionSet, dict[str, str]]:
    """The pictures, and the flags learn, forget and retain that a three-folder layout implies."""
    folders = {"learn": source.learn_data, "forget": source.forget_data, "retain": source.retain_data}
    if not (folders["forget"] or folders["retain"]):
        data = load(source.data)
        return (data.joined(load(source.learn_data)) if source.learn_data else data), {}
    missing = [name for name, folder in folders.items() if not folder and name != "learn"]
    if missing:
        raise UserError(f"a three-folder layout needs --{missing[0]}-data as well.")
    whole, flags = None, {}
    for name, folder in folders.items():
        if folder:
            part = load(folder)
            shown = {thing.label for picture in part.train for thing in picture.things}
            flags[name] = ",".join(c for c in part.classes if c in shown)
            whole = part if whole is None else whole.joined(part)
    return whole, flags


def open_swap(
    source: SourceConfig, pictures: PictureConfig, forgetting: ForgettingConfig, plan_config: PlanConfig, seed: int
) -> tuple[DetectionDomain, Plan]:
    """The domain and the plan that the flags of swap.py describe."""
    data, implied = open_data(source)
    for name, text in implied.items():
        if not getattr(plan_config, name):
            setattr(plan_config, name, text)
    model = base_model(source)
    known = [c for c in model.class_table.names if c in data.classes]
    new = [c for c in data.classes if c not in model.class_table.names]
    if not known:
        raise UserError(
            f"the data shows none of the checkpoint's classes ({', '.join(model.class_table.names[:8])}, ...)."
        )
    plan = forgetting_plan(forgetting, plan_config, known) or plan_from(plan_config, known, new)
    torch.manual_seed(seed)
    return DetectionDomain(model, data, dict(plan.groups), pictures, seed), plan


def fresh_model(source: SourceConfig, names: tuple[str, ...], ids: tuple[int, ...], default: Config) -> nn.Module:
    """A detector at random with one row per name, of --config-file or else of the `default` config."""
    changes = {"num_classes": len(names), "dn_labelbook_size": len(names)}
    config = model_config(source, **changes)
    if config is None:
        config = config_from(changed(default, own_changes(source)).to_dict() | changes)
    model = build_detector(config)
    model.class_table = ClassTable(names, ids)
    return model


def config_of(kind: type, flags: dict[str, Any]) -> Any:
    """A config from the flags that a run recorded."""
    return kind(**{f.name: flags[f.name] for f in fields(kind) if f.name in flags})


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a run of ours (a Hugging Face folder has a config.json too)."""
    return (Path(folder) / "config.json").is_file() and not is_folder(folder)


def load_run(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """(detector in eval mode, config.json) of a finished run: its whole model, or base model and adapter.

    Raises:
        UserError: no run there, or its base model has moved.
    """
    folder = Path(folder)
    record = read_json(folder / "config.json")
    if (folder / "model" / MODEL_FILE).is_file():
        return load_checkpoint(folder / "model" / MODEL_FILE), record
    info, _ = adapters.read(folder / "adapter")
    model = base_model(config_of(SourceConfig, record["flags"]))
    model = extend_classes(model, len(info["classes"]))
    model.class_table = ClassTable(tuple(info["classes"]), model.class_table.ids)
    adapters.load(model, folder / "adapter")
    return model.eval(), record
