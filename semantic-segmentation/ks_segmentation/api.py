"""Semantic segmentation from Python: `swap` and `load_run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from common import result
from common.result import Result
from ks_segmentation.session import SESSION


def swap(
    model: str | Path | nn.Module,
    data: Any = None,
    learn: Sequence[str] = (),
    forget: Sequence[str] = (),
    **settings: Any,
) -> Result:
    """Learns and forgets the classes of a segmenter; the model that was given is not changed.

    Args:
        model: a path that --checkpoint takes (a run folder; a detectron2 file together with `config_file`), or a model
            of `build_mask2former`, `load_checkpoint` or `load_hub`, whose classes are named by `class_names=[...]`.
        data: a path that --data takes, or (train, test): two torch Datasets of (image, mask), images as PIL images,
            uint8 arrays [H, W, 3] or tensors [3, H, W] (uint8, or float in 0..1), masks [H, W] of class ids with 255
            where there is none. Ids are named by the Datasets' `classes`, or by `data_classes=[...]`. An index gives
            the same pair at every call; images are augmented here.
            `train=` and `test=` say the same.
        learn, forget: class names; all other classes that the model knows and the data shows are retained.
        settings: any flag of `swap.py --help-all` by its name (steps=300, lr=1e-3, method="replay", seed=0),
            `opts=[KEY, value, ...]` for settings of the config, and `callbacks`: functions called with ("steps" or "metrics", record) as the run goes on; `on_step(record)` after
            every step, `on_evaluate(found)` and `on_phase_end(found)` with the scores of all groups. Without
            `output_dir` the run folder is temporary; `Result.save` keeps it.

    Returns:
        A `Result` with `scores` (mean IoU), `model`, `report(path)` and `save(path)`.

    Raises:
        UserError: what a command would refuse, in one line.
    """
    return result.swap(SESSION, model, data, learn, forget, **settings)


load_run = result.loader(SESSION)
load_runs = result.loader_of_several(SESSION)
