"""Trainers on Gaussian blobs (see common.evaluation.synthetic), in milliseconds."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from toy import make_trainer

from common.domain import Domain
from common.evaluation.synthetic import Blobs, Net
from common.methods._base import Position, Step
from common.methods._snapshots import trained
from common.plan import Plan, make_plan
from common.trainer import Trainer

REST = ("c1", "c2", "c3")  # what `forget_plan` retains


def trainer(domain: Domain, plan: Plan, method: str, folder, **settings) -> Trainer:
    """A trainer of `plan`; settings by flag name."""
    return make_trainer(domain, plan, method, folder, **{"gallery": 0, "epochs": 2, **settings})


def pretrained(known: int, classes: int = 6) -> Blobs:
    """A domain whose base model knows the first `known` of its classes."""
    domain = Blobs(classes)
    domain.base = _trained_net(known, classes)
    return domain


@functools.cache
def _trained_net(known: int, classes: int) -> Net:
    domain = Blobs(classes)
    torch.manual_seed(0)
    model = Net(classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    names = domain.classes.names[:known]
    points = torch.cat([domain.data[True][c] for c in names])
    labels = torch.tensor(domain.classes.rows(names)).repeat_interleave(len(domain.data[True]["c0"]))
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(points)[:, :known], labels).backward()
        optimizer.step()
    return model.eval()


def forget_plan():
    return make_plan("forget", [], ["c0"], REST)


def begun(method: str, folder, plan: Plan | None = None, domain=None, **settings):
    """A trainer whose method has begun the first phase, and that phase."""
    plan = plan or forget_plan()
    t = trainer(domain or pretrained(4), plan, method, folder, **settings)
    t.method.begin_phase(plan.phases[0])
    return t, plan.phases[0]


def step_of(t, phase, number: int = 0) -> Step:
    """A step with real batches, of `phase`."""
    return Step(Position(phase, number, 10, 5), *next(t._batches(phase, 0)))


def gradients(t, loss) -> dict[str, torch.Tensor]:
    members = trained(t.model)
    grads = torch.autograd.grad(loss, list(members.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(members.items(), grads, strict=True)}


def predictions(t, step):
    return t.domain.predict_together(t.model, [step.target, step.keep])
