"""`--until settled`, and `auto` where no length is given: a phase ends by itself once nothing moves any more; its number
of steps is the limit.

Every `--settled-window` steps the model is looked at on training items that the phase's steps leave out; `auto` leaves
none out of a phase with few, and looks at those. A phase has settled when the loss of what is kept has not changed over
the last window, and when what is to be forgotten has no more than `--settled-share` of the answers on its items; a learn
phase, when the loss of what is learned has not changed either. Its learning rate then falls to 0 over a quarter as many
steps more, one window at least.
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
from common.report.verdict import ended
from common.streams import Chosen, Stream, derive
from common.train_config import TrainConfig

HELD, MOST = 0.1, 64  # share of the training items that is looked at instead of trained on, and their largest number
FEW = 10  # items per class of which `auto` leaves none out
SLOW = 4  # a settled phase slows down over its steps so far divided by this

Look = dict[str, float]  # "keep", "target": mean loss of held-out items; "share": of the target's own classes, 0..1


class Settling:
    """Whether the phase in progress has settled.

    looks: what was seen of it so far; at, end: the numbers of steps after which it had settled and ends; end is None
        until then.
    """

    def __init__(self, config: TrainConfig, domain: Domain, method: Method, plan: Plan) -> None:
        self.config, self.domain, self.method = config, domain, method
        self.looks: list[Look] = []
        self.at = 0
        self.end: int | None = None
        if config.until == "settled" and not method.settles:
            raise UserError(
                f"`--until settled`: the steps of {config.method} depend on their number; use --until steps."
            )
        for phase in plan.phases if config.until == "settled" else ():
            for classes in (phase.target, phase.keep):
                if classes and domain.size(classes, train=True) < 2:
                    raise UserError(
                        f"`--until settled` holds training items out, and phase {phase.title} has one only; "
                        "use --until steps."
                    )

    def on(self, phase: Phase) -> bool:
        """Whether a phase may end before its last step."""
        if self.config.until == "auto":
            return self.method.settles and not self.config.given(phase.action)
        return self.config.until == "settled"

    def _few(self, phase: Phase, role: str) -> bool:
        """Whether a phase has too few items of "target" or "keep" to leave some out unasked."""
        classes = _classes(phase, role)
        return self.config.until == "auto" and self.domain.size(classes, train=True) < FEW * len(classes)

    def held(self, phase: Phase, role: str) -> tuple[int, ...]:
        """Positions of the items of "target" or "keep" that are looked at; the steps of a phase leave them out."""
        size = self.domain.size(_classes(phase, role), train=True)
        chance = torch.Generator().manual_seed(derive(self.config.seed, "held", phase.index, role))
        count = min(MOST, size if self._few(phase, role) else max(1, int(HELD * size)))
        return tuple(sorted(torch.randperm(size, generator=chance)[:count].tolist()))

    def stream(self, phase: Phase, role: str, stream: Stream) -> Stream:
        """The stream without what is held out."""
        if not self.on(phase) or role == "gone" or self._few(phase, role):
            return stream
        size = self.domain.size(_classes(phase, role), train=True)
        held, items = set(self.held(phase, role)), stream.items if isinstance(stream, Chosen) else range(size)
        left = tuple(i for i in items if i not in held) or tuple(items)  # a memory may hold nothing else
        return Chosen(stream.seed, stream.batch_size, stream.start, stream.rank, stream.world, left)

    def due(self, at: Position) -> bool:
        """Whether this step ends a window."""
        after = at.number + 1
        ends = after % self.config.settled_window == 0 and after < at.total
        return ends and self.end is None and self.on(at.phase)

    def fading(self, number: int) -> float:
        """What the learning rate of a 0-based step is multiplied by: 1, and after the phase has settled less and less."""
        return 1.0 if self.end is None else (self.end - number) / (self.end - self.at + 1)

    @torch.no_grad()
    def look(self, at: Position) -> None:
        """Looks at the held-out items with the model as the phase would end with, and sets the end once it has settled."""
        phase = at.phase
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
        if settled(self.looks, self.config):
            self.at = at.number + 1
            self.end = min(at.total, self.at + max(self.config.settled_window, self.at // SLOW))

    def figures(self, phase: Phase, steps: int, limit: int) -> list[dict[str, Any]]:
        """The line of the record about how the phase ended, if it could settle, which is printed too; forgets its looks."""
        state = self.state_dict()
        self.load_state_dict({})
        if not self.on(phase) or not limit:
            return []
        last = state["looks"][-1] if state["looks"] else {}
        told = {"settled": state["end"] is not None, "steps": steps, "limit": limit, **last}
        if distributed.is_main():
            print(f"  phase {phase.title} {ended(told)}", flush=True)
        return [{"phase": phase.index, "action": phase.action, "ended": told}]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"looks": self.looks, "at": self.at, "end": self.end}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; an empty one begins a phase."""
        self.looks, self.at, self.end = state.get("looks", []), state.get("at", 0), state.get("end")


def _classes(phase: Phase, role: str) -> tuple[str, ...]:
    return phase.target if role == "target" else phase.keep


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
