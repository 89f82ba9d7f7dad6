"""`--until settled`: a phase ends by itself once nothing moves any more; its number of steps is the limit.

Every `--settled-window` steps the model is looked at on training items that the phase's steps leave out. A phase has
settled when the held-out loss of what is kept has not changed over the last window, and when what is to be forgotten
has no more than `--settled-share` of the answers on its held-out items; a learn phase, when the loss of what is learned
has not changed either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from common import distributed
from common.domain import Domain, Prediction
from common.errors import UserError
from common.methods._base import Method, Position
from common.plan import Phase, Plan
from common.streams import Chosen, Stream, derive
from common.train_config import TrainConfig

HELD, MOST = 0.1, 64  # share of the training items that is looked at instead of trained on, and their largest number

Look = dict[str, float]  # "keep", "target": mean loss of held-out items; "share": of the target's own classes, 0..1


class Settling:
    """Whether the phase in progress has settled.

    looks: what was seen of it so far.
    """

    def __init__(self, config: TrainConfig, domain: Domain, method: Method, plan: Plan) -> None:
        self.config, self.domain, self.method = config, domain, method
        self.on = config.until == "settled"
        self.looks: list[Look] = []
        for phase in plan.phases if self.on else ():
            for classes in (phase.target, phase.keep):
                if classes and domain.size(classes, train=True) < 2:
                    raise UserError(
                        f"`--until settled` holds training items out, and phase {phase.title} has one only; "
                        "use --until steps."
                    )

    def held(self, phase: Phase, role: str) -> tuple[int, ...]:
        """Positions of the items of "target" or "keep" that the steps of a phase leave out."""
        size = self.domain.size(phase.target if role == "target" else phase.keep, train=True)
        chance = torch.Generator().manual_seed(derive(self.config.seed, "held", phase.index, role))
        count = min(MOST, max(1, int(HELD * size)))
        return tuple(sorted(torch.randperm(size, generator=chance)[:count].tolist()))

    def stream(self, phase: Phase, role: str, stream: Stream) -> Stream:
        """The stream without what is held out."""
        if not self.on or role == "gone":
            return stream
        size = self.domain.size(phase.target if role == "target" else phase.keep, train=True)
        held, items = set(self.held(phase, role)), stream.items if isinstance(stream, Chosen) else range(size)
        left = tuple(i for i in items if i not in held) or tuple(items)  # a memory may hold nothing else
        return Chosen(stream.seed, stream.batch_size, stream.start, stream.rank, stream.world, left)

    def due(self, at: Position) -> bool:
        """Whether this step ends a window."""
        after = at.number + 1
        return self.on and after % self.config.settled_window == 0 and after < at.total

    @torch.no_grad()
    def look(self, phase: Phase) -> bool:
        """Looks at the held-out items with the model as the phase would end with; whether it has settled."""
        self.method.model.eval()
        seen: Look = {}
        for role, classes in (("target", phase.target), ("keep", phase.keep)):
            sums = torch.zeros(3, dtype=torch.double)  # loss, share, items
            for batch in self.method.pass_over(classes, items=self.held(phase, role)) if classes else ():
                found = self.domain.predict(self.method.model, batch)
                count = len(self.domain.item_names(batch))
                own = _share(self.domain, found)
                sums += torch.tensor([found.loss.item() * count, own.mean().item() * count if len(own) else 0.0, count])
            loss, share, count = distributed.total(sums).tolist()
            if count:
                seen[role] = loss / count
            if role == "target" and phase.action == "forget":
                seen["share"] = share / count
        self.looks.append(seen)
        return settled(self.looks, self.config)

    def figures(self, phase: Phase, steps: int, limit: int) -> list[dict[str, Any]]:
        """The line of the record about how the phase ended, if it could settle; forgets its looks."""
        looks, self.looks = self.looks, []
        if not self.on or not limit:
            return []
        told = {"settled": steps < limit, "steps": steps, "limit": limit, **(looks[-1] if looks else {})}
        return [{"phase": phase.index, "action": phase.action, "ended": told}]


def settled(looks: Sequence[Look], config: TrainConfig) -> bool:
    """Whether the last two looks are those of a phase that has settled; losses may change by a share of 1 + loss."""
    if len(looks) < 2 or looks[-1].get("share", 0.0) > config.settled_share:
        return False
    before, now = looks[-2:]
    watched = [name for name in ("keep", "target") if name in now and not (name == "target" and "share" in now)]
    return all(abs(now[n] - before[n]) <= config.settled_change * (1 + min(now[n], before[n])) for n in watched)


def _share(domain: Domain, found: Prediction) -> torch.Tensor:
    """[N] share of the answer on each item that its own class gets, 0..1."""
    if not domain.exclusive and found.item_loss is not None:
        return (-found.item_loss.float()).exp()
    return found.scores.float().softmax(-1).gather(1, found.labels[:, None])[:, 0]
