"""From flags to a domain and a plan: what swap.py, pretrain.py, evaluate.py and predict.py share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from common import adapters
from common.errors import UserError
from common.plan import Plan, PlanConfig, plan_from
from common.record import read_json, write_json
from common.splits import read_list
from ks_segmentation import class_lists, layouts
from ks_segmentation.config import Config, load_config
from ks_segmentation.domain import MaskConfig, SegmentationDomain
from ks_segmentation.layouts import MaskSet
from ks_segmentation.scan import scan

MODEL_FILE = "segmentation.json"  # beside the weights in a folder of ours: settings and class names


@dataclass
class SourceConfig:
    """Model and data."""

    config_file: str = field(
        default="", metadata={"help": "detectron2 YAML file of the model; `KEY value` words at the end override it"}
    )
    checkpoint: str = field(
        default="",
        metadata={"help": "pretrained model: a run of pretrain.py, a detectron2 .pth or .pkl, .safetensors, a Hugging "
                          "Face folder; default MODEL.WEIGHTS"},
    )  # fmt: skip
    data: str = field(
        default="",
        metadata={"help": "masks of the base classes: KIND:FOLDER (folder, ade20k, voc, coco, cityscapes, pet, "
                          "deepglobe), several separated by commas, or digits"},
    )  # fmt: skip
    learn_data: str = field(default="", metadata={"help": "more data, with the classes to be learned, likewise"})
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
    num_gpus: int = field(default=1, metadata={"help": "processes to start with torch's launcher, one per GPU"})


def settings(source: SourceConfig, words: Sequence[str]) -> Config:
    """The config of the flags. Raises UserError when no file is named."""
    if not source.config_file:
        raise UserError(
            "which model? Give --config-file, such as semantic-segmentation/configs/ade20k/semantic-segmentation/"
            "swin/maskformer2_swin_base_IN21k_swap.yaml, or --checkpoint with a folder that pretrain.py wrote."
        )
    return load_config(source.config_file, words)


def save_folder(folder: Path, model: nn.Module, classes: Sequence[str]) -> None:
    """Writes what is needed to build the model again beside its weights."""
    plain = model.config.plain()
    plain["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] = len(classes)
    write_json(folder / MODEL_FILE, {"config": plain, "classes": list(classes)})


def load_folder(folder: Path, words: Sequence[str] = ()) -> tuple[nn.Module, list[str]]:
    """(model in eval mode, class names) of a folder that `save_folder` completed.

    Raises:
        UserError: no model there.
    """
    from ks_segmentation.architecture import build_mask2former

    if not (folder / MODEL_FILE).is_file():
        raise UserError(f"{folder} holds no model of ours ({MODEL_FILE} is missing).")
    record = read_json(folder / MODEL_FILE)
    model = build_mask2former(load_config(None, [*_words(record["config"]), *words]))
    adapters.load_model(model, folder)
    return model.eval(), record["classes"]


def _words(table: Mapping[str, Any], prefix: str = "") -> list[Any]:
    """KEY, value, KEY, value, ... of nested tables."""
    words: list[Any] = []
    for key, value in table.items():
        words += _words(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key, value]
    return words


def base_model(source: SourceConfig, words: Sequence[str], grow: bool) -> tuple[nn.Module, list[str]]:
    """(the pretrained model, names of the classes it knows).

    Args:
        grow: whether NUM_CLASSES of the config may exceed the checkpoint's number of classes.

    Raises:
        UserError: nothing to load, or its classes cannot be named.
    """
    path = Path(source.checkpoint)
    for folder in (path, path / "model"):
        if source.checkpoint and (folder / MODEL_FILE).is_file():
            return load_folder(folder, words)
    config = settings(source, words)
    weights = source.checkpoint or config.MODEL.WEIGHTS
    if not weights:
        raise UserError("a pretrained model is needed: give --checkpoint, or MODEL.WEIGHTS and a file at the end.")
    from ks_segmentation.checkpoint import class_count, load_checkpoint
    from ks_segmentation.read_file import read_weights

    state = read_weights(weights)
    model = load_checkpoint(state, config, rehead=grow)
    if adapters.adapters(model):
        model = adapters.merge(model)  # a published swap is a base like any other
    return model, name_rows(class_count(state) or model.num_classes, source)


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
        classes = layouts.load(source.data.split(",")[0]).classes
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
    texts = [t for text in (source.data, source.learn_data) for t in text.split(",") if t]
    if not texts:
        raise UserError("which data? Give --data KIND:FOLDER (or --data digits).")
    return [layouts.load(text) for text in texts]


def open_swap(
    source: SourceConfig, masks: MaskConfig, plan_config: PlanConfig, words: Sequence[str], seed: int
) -> tuple[SegmentationDomain, Plan]:
    """The domain and the plan that the flags of swap.py describe."""
    model, known = base_model(source, words, grow=True)
    sets = load_data(source, known)
    offered = occurring(sets, masks.cache_dir)
    base = [c for c in known if c in offered]
    new = [c for c in offered if c not in known]
    if source.learnsetname:
        _published_groups(source, plan_config, sets[0], known)
    plan = plan_from(plan_config, base, new)
    return SegmentationDomain(model, known, sets, plan.groups, masks, seed), plan


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


def config_of(kind: type, flags: Mapping[str, Any]) -> Any:
    """A config from the flags that a run recorded."""
    return kind(**{f.name: flags[f.name] for f in fields(kind) if f.name in flags})


def load_run(folder: str | Path, words: Sequence[str] = ()) -> tuple[nn.Module, list[str], dict[str, Any]]:
    """(model in eval mode, class names, config.json) of a finished run: base model, adapter and new rows.

    Raises:
        UserError: no run there, or its base model has moved.
    """
    folder = Path(folder)
    record = read_json(folder / "config.json")
    if (folder / "model" / MODEL_FILE).is_file():
        return *load_folder(folder / "model", words), record
    info, _ = adapters.read(folder / "adapter")
    model, _ = base_model(
        config_of(SourceConfig, record["flags"]), [*record["flags"].get("opts", []), *words], grow=True
    )
    if len(info["classes"]) != model.num_classes:
        model.grow(len(info["classes"]))
    adapters.load(model, folder / "adapter")
    return model.eval(), info["classes"], record
