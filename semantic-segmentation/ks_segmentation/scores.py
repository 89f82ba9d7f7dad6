"""Segmentation scores from one confusion matrix, counted as detectron2's SemSegEvaluator counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common import distributed
from common.domain import Evaluation
from common.errors import UserError
from common.evaluation.spill import shares


@dataclass(frozen=True)
class Scores:
    """All in percent.

    miou: mean over classes with ground truth of TP / (truth + predicted - TP).
    fwiou: the same weighted by each class's share of the ground truth.
    macc: mean over classes with ground truth of TP / truth.
    pacc: share of pixels that are right.
    iou, acc: per class; NaN for a class without ground truth (iou: without truth and prediction).
    answers: class -> what its pixels are called -> share of them, 0..1.
    """

    miou: float
    fwiou: float
    macc: float
    pacc: float
    iou: dict[str, float]
    acc: dict[str, float]
    answers: dict[str, dict[str, float]]

    def evaluation(self, classes: Sequence[str]) -> Evaluation:
        """The same as the loop records it: IoU as the score, fwIoU, ACC (its total is mACC) and pACC beside it."""
        figures = {
            "fwIoU": {"total": self.fwiou},
            "ACC": {"total": self.macc, **{c: self.acc[c] for c in classes}},
            "pACC": {"total": self.pacc},
        }
        answers = {c: self.answers[c] for c in classes if c in self.answers}
        return Evaluation({"total": self.miou, **{c: self.iou[c] for c in classes}}, figures, answers=answers)


class Confusion:
    """Counts pixels by predicted and true class; ignored pixels count nowhere.

    Args:
        names: the classes; a predicted or true id is an index into them.
        ignore: true id of pixels that are left out.
    """

    def __init__(self, names: Sequence[str], ignore: int = 255) -> None:
        self.names, self.ignore = tuple(names), ignore
        self.matrix = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)  # [predicted, true]

    def add(self, predicted: Tensor, true: Tensor) -> None:
        """Counts one image, [H, W] ids each.

        Raises:
            UserError: different sizes, or an id outside the list.
        """
        if predicted.shape != true.shape:
            raise UserError(f"the mask is {tuple(true.shape)} pixels but the answer {tuple(predicted.shape)}.")
        counted = true != self.ignore
        predicted, true = predicted[counted].long(), true[counted].long()
        count = len(self.names)
        for what, ids in (("mask", true), ("answer", predicted)):
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
                raise UserError(f"the {what} holds the id {int(ids.max())}; there are {count} classes.")
        pairs = torch.bincount(predicted * count + true, minlength=count * count)
        self.matrix += pairs.view(count, count).cpu()

    def scores(self, device: torch.device | None = None) -> Scores:
        """The scores of all ranks together."""
        matrix = distributed.total(self.matrix.to(device)).cpu().double().numpy()
        right, true, predicted = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
        union = true + predicted - right
        with np.errstate(invalid="ignore", divide="ignore"):
            iou, acc = 100 * right / union, 100 * right / true
        present = true > 0
        share = true / max(true.sum(), 1)
        empty = not present.any()
        return Scores(
            miou=float("nan") if empty else float(iou[present].mean()),
            fwiou=float((iou[present] * share[present]).sum()),
            macc=float("nan") if empty else float(acc[present].mean()),
            pacc=float(100 * right.sum() / max(true.sum(), 1)),
            iou=dict(zip(self.names, iou.tolist(), strict=True)),
            acc=dict(zip(self.names, acc.tolist(), strict=True)),
            answers={
                name: shares(dict(zip(self.names, column, strict=True)))
                for name, column, whole in zip(self.names, matrix.T.tolist(), true.tolist(), strict=True)
                if whole
            },
        )
