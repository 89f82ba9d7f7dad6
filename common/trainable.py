"""What trains: adapters and new head rows, all but the head, or everything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import distributed, lora
from common.domain import Domain
from common.errors import UserError
from common.methods._base import Step
from common.plan import Plan
from common.rows import TrainedRows
from common.settings import Settings
from common.streams import derive
from common.teacher import share
from common.train_config import TrainConfig


def prepare(model: nn.Module, domain: Domain, plan: Plan, settings: Settings) -> TrainedRows | None:
    """Freezes what the method does not train and puts the adapters on, in place; the head rows that train.

    None: everything trains.
    """
    scope = settings.method.scope(settings.method_config)
    if scope == "all":
        return None
    if scope == "adapter":
        config = settings.lora
        model.requires_grad_(False)
        if domain.base is not None:
            share(model, domain.base, set(domain.head_rows(model, domain.classes.names)))
        lora.inject(model, lora.select(domain.lora_targets(model), config, model), config.lora_rank, config.alpha)
        lora.fresh(model, config, derive(settings.train.seed, "lora"))
    else:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in domain.head_rows(model, domain.classes.names):
            parameters[name].requires_grad_(False)
    return TrainedRows(model, domain.head_rows(model, plan.new_classes) if settings.train.train_head_rows else {})


def optimizer(
    parameters: Sequence[nn.Parameter], rows: TrainedRows | None, config: TrainConfig
) -> torch.optim.Optimizer:
    """AdamW; vectors and head rows have no decay."""
    free = {id(p) for p in rows.parameters.values()} if rows is not None else set()
    decay = [p for p in parameters if p.dim() > 1 and id(p) not in free]
    plain = [p for p in parameters if p.dim() <= 1 or id(p) in free]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def take_up(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads an optimizer's state. Raises ValueError where it is that of other parameters."""
    optimizer.load_state_dict(dict(state))
    for parameter, values in optimizer.state.items():
        if any(isinstance(v, torch.Tensor) and v.dim() and v.shape != parameter.shape for v in values.values()):
            raise ValueError("the optimizer's state is of other parameters")


def check_finite(model: nn.Module, title: str) -> None:
    """Raises UserError for a phase that ended with weights that are no numbers, before they are saved."""
    bad = [name for name, p in model.named_parameters() if p.requires_grad and not p.isfinite().all()]
    if bad:
        raise UserError(
            f"phase {title} ended with weights that are not finite ({bad[0]}); none of them was saved: lower --lr, or "
            "use --precision fp32."
        )


def count(parameters: list[nn.Parameter], rows: TrainedRows | None) -> int:
    """Number of values that train; of a head of which some rows train, those rows."""
    total = sum(p.numel() for p in parameters)
    if rows is None:
        return total
    whole = {id(p): p.numel() for p in rows.parameters.values()}
    return total - sum(whole.values()) + rows.count()


def check_step(watched: Mapping[str, float], own: float, steps: Sequence[Step], domain: Domain, folder: Path) -> None:
    """Stops all ranks together, before the optimizer moves, and names the files of the ranks to blame.

    Args:
        watched: the loss over all ranks, and the gradient's norm where it may not overflow.
        own: the loss of this rank.
        steps: what the batches of the step were.

    Raises:
        UserError: one of them is not finite.
    """
    bad = [name for name, value in watched.items() if not math.isfinite(value)]
    if not bad:
        return
    batches = [batch for step in steps for batch in step.batches()]
    names = [name for batch in batches for name in domain.item_names(batch)]
    ranks = distributed.gather((math.isfinite(own), names))
    blamed = [n for fine, n in ranks if not fine] or [n for _, n in ranks]
    what = {"loss": "the loss", "grad_norm": "the gradient"}[bad[0]]
    at = steps[0].at
    raise UserError(
        f"{what} is {watched[bad[0]]} in phase {at.phase.title}, step {at.number + 1}; the batch was: "
        f"{', '.join(name for names in blamed for name in names)}; "
        f"lower --lr, or use --precision fp32. What was saved is intact in {folder}."
    )
