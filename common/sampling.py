"""Scores of a small sample of test items on the way through a phase: curves for the report, at a known price.

Nothing is chosen by these scores, and no random number is drawn for them: a run with them trains the same weights as one
without.
"""

from __future__ import annotations

from collections.abc import Callable

from common import distributed
from common.methods._base import Position
from common.plan import Phase
from common.train_config import TrainConfig

PRICE = 0.15  # items that all looks at a sample see, as a share of the items that the phase trains on
LEAST, MOST = 3, 100  # items of a group in a sample; no sample is taken where there would be fewer


class Sampling:
    """When a phase scores a sample, and how large that is.

    An item that is looked at takes one forward pass, about a third of what one takes that is trained on, so that the looks
    take about a third of `PRICE` of a phase's time.

    Args:
        groups: number of groups that are scored.
        settles: whether a phase may end before its last step.
    """

    def __init__(self, config: TrainConfig, groups: int, settles: Callable[[Phase], bool]) -> None:
        self.groups, self.points, self.settles = groups, config.curve_points, settles
        self.shortest = 3 * config.settled_window  # steps of a phase that settles: two windows, and one to slow down in
        self.per_step = 2 * config.batch_size * config.accumulate * distributed.world()  # items to train and to keep

    def _length(self, phase: Phase, steps: int) -> int:
        """The steps in which the looks of a phase are taken; if it goes on, so do they."""
        return min(steps, self.shortest) if self.settles(phase) else steps

    def size(self, phase: Phase, steps: int) -> int:
        """Items of each group in the sample of a phase of so many steps, or at most; 0 where it is too short for a look."""
        looks = self.points + (2 if self.settles(phase) else 1)  # the first, and the last where it may come early
        items = PRICE * self._length(phase, steps) * self.per_step
        share = int(items / (looks * self.groups)) if self.points else 0
        return min(MOST, share) if share >= LEAST else 0

    def due(self, at: Position) -> bool:
        """Whether a sample is scored after this step; the scores of the last step are taken in any case."""
        after, length = at.number + 1, self._length(at.phase, at.total)
        return after < at.total and after * self.points // length > at.number * self.points // length
