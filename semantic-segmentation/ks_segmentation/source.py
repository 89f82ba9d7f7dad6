"""The flags that name model and data, and the names and the data that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import user_path
from common.knobs import Checked, knob
from common.plan_file import PlanConfig
from common.splits import read_list, stated_rows
from ks_segmentation.config.load import Config, load_config
from ks_segmentation.data import class_lists, layouts
from ks_segmentation.data.scan import scan
from ks_segmentation.data.sets import MaskSet

PUBLISHED = ("learnsetname", "learnset", "forgetset", "retainset")  # flags of the published three folders


@dataclass
class SourceConfig(Checked):
    """Model and data."""

    config_file: str = knob("", "detectron2 YAML file of the model; `KEY value` words at the end override it")
    model: str = knob(
        "",
        "a segmenter of transformers, by folder or by name on its hub: hf:FOLDER, hf:NAME (mask2former, oneformer, "
        "maskformer, eomt, segformer, upernet)",
    )
    checkpoint: str = knob(
        "",
        "pretrained model: a run of pretrain.py or swap.py, a detectron2 .pth or .pkl, .safetensors, a Hugging Face "
        "folder; default MODEL.WEIGHTS",
    )
    data: str = knob(
        "",
        "masks of the base classes: KIND:FOLDER (folder, ade20k, voc, coco, cityscapes, pet, deepglobe), several "
        "separated by commas, or digits",
    )
    learn_data: str = knob("", "more data, with the classes to be learned, likewise")
    data_classes: str = knob(
        "", "names of the mask ids of --data in order, where the data does not state them: a,b,c or @file"
    )
    class_names: str = knob("", "names of the checkpoint's classes in order: a,b,c or @file (default: by data set)")
    learnsetname: str = knob("", "published three-folder data: which six classes are new (voc, pet, coco, sat)")
    learnset: str = knob("", "its learn folder")
    forgetset: str = knob("", "its forget folder")
    retainset: str = knob("", "its retain folder")


def read_config(source: SourceConfig, words: Sequence[Any]) -> Config:
    """The config of the flags. Raises UserError when no file is named."""
    if not source.config_file:
        raise UserError(
            "which model? Give --config-file, such as semantic-segmentation/configs/ade20k/semantic-segmentation/"
            "swin/maskformer2_swin_base_IN21k_swap.yaml, or --checkpoint with a folder that pretrain.py wrote, or "
            "--model hf:FOLDER with a model of transformers."
        )
    return load_config(source.config_file, words)


def name_rows(count: int, source: SourceConfig) -> list[str]:
    """Names of a checkpoint's classes: --class-names, or those of the data set with so many classes.

    A head of 160 rows is a published swap's start: 150 classes of ADE20K, the rest spare.
    """
    if source.class_names:
        return stated_rows(source.class_names, count)
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
    for part, name in (("train", "training"), ("test", "test (validation)")):
        if not any(getattr(one, part) for one in sets):
            raise UserError(f"the data has no {name} images; see semantic-segmentation/README.md for its folders.")
    both = found["train"] & found["test"]
    return [c for c in dict.fromkeys(c for one in sets for c in one.classes) if c in both]


def published_groups(source: SourceConfig, plan: PlanConfig, data: MaskSet, known: Sequence[str]) -> None:
    """Fills --learn and --forget from the folders where they are not given: new classes, and the classes that the
    forget folder's masks hold."""
    if not plan.learn:
        plan.learn = ",".join(data.classes[len(known) :])
    if not plan.forget:
        inside = [i for i in data.train if user_path(source.forgetset) in Path(i.mask).parents]
        rows = sorted({row for counts in scan(inside) for row in counts})
        plan.forget = ",".join(data.classes[row] for row in rows if row < len(known))
