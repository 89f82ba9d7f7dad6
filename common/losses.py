"""Losses that several methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common import distributed
from common.domain import Prediction

HIDDEN = -1e10  # a score whose share of a softmax is 0


def bounded_forgetting(prediction: Prediction, bound: float, per_item: bool = True) -> Tensor:
    """How far the items are from being forgotten: relu(bound - loss). Scalar, 0 when done.

    Args:
        prediction: of items to be forgotten, with their true labels.
        bound: the loss, in the units of the domain's loss (nats), at which an item counts as forgotten.
        per_item: the hinge is applied to every item and averaged, so that no class can pay for another;
            False applies it to the mean over the batch, and over all ranks (as published). Domains whose loss
            does not split into items always get the latter.
            There a domain may name the part of its loss that is reversed (`Prediction.reversible`); the rest is
            then minimised.

    Source: GS-LoRA, arXiv:2403.11530, eq. 5.
    """
    if per_item and prediction.item_loss is not None:
        return mean_over_ranks(F.relu(bound - prediction.item_loss))
    part = prediction.loss if prediction.reversible is None else prediction.reversible
    return F.relu(bound - distributed.mean(part)) + (prediction.loss - part)


def masked_kl(student: Tensor, teacher: Tensor, hidden: list[int], temperature: float = 1.0) -> Tensor:
    """KL of the teacher's answers without some classes from the student's. Scalar, in nats; 0 where there is no item.

    The student approaches softmax(teacher / temperature) over the classes that are not hidden, and 0 on those.

    Args:
        student: [N, C] scores with gradients.
        teacher: [N, C] scores of another model for the same N items; treated as constant.
        hidden: rows whose classes get no share.
        temperature: below 1 sharpens the teacher's answers.

    Source: DELETE, Zhou et al., CVPR 2025, arXiv:2503.23751, eq. 7-9, with temperature 1.
    """
    wanted = teacher.detach().float() / temperature
    rows = torch.tensor(hidden, dtype=torch.long, device=wanted.device)
    wanted = wanted.index_fill(1, rows, HIDDEN).log_softmax(-1)
    each = F.kl_div(student.float().log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1)  # [N]
    return mean_over_ranks(each)


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of [N] values of items, of which ranks may hold different numbers; 0 where there is none.

    Scalar. Its mean over ranks, as DDP takes it of gradients, is the mean over all items.
    """
    return values.sum() / distributed.mean(values.new_tensor(len(values))).clamp(min=1 / distributed.world())


def soft_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence KL(teacher || student) of two score tensors, both softened. Scalar, in nats, times T^2.

    Args:
        student: [N, C] scores with gradients.
        teacher: [N, C] scores of another model for the same N items; treated as constant.
        temperature: above 1 flattens both; the result is scaled by its square.

    Raises:
        ValueError: if the shapes differ.

    Source: Hinton et al., 2015, arXiv:1503.02531, section 2.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"`student` is {tuple(student.shape)} but `teacher` is {tuple(teacher.shape)}.")
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
