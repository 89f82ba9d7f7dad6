"""Scores of a small sample of test items on the way through a phase: curves for the report, at a known price.

Nothing is chosen by these scores, and no random number is drawn for them: a run with them trains the same weights as one
without.
"""

from __future__ import annotations

from common import distributed
from common.methods._base import Position
from common.train_config import TrainConfig

PRICE = 0.15  # items that all looks at a sample see, as a share of the items that the phase trains on
LEAST, MOST = 4, 100  # items of a group in a sample; no sample is taken where there would be fewer


class Sampling:
    """When a phase scores a sample, and how large that is.

    An item that is looked at takes one forward pass, about a third of what one takes that is trained on, so that the looks
    take about a third of `PRICE` of a phase's time.

    Args:
        groups: number of groups that are scored.
    """

    def __init__(self, config: TrainConfig, groups: int) -> None:
        self.groups = groups
        self.points = config.curve_points * (2 if config.until == "settled" else 1)  # such a phase may end half way
        self.per_step = 2 * config.batch_size * config.accumulate * distributed.world()  # items to train and to keep

    def size(self, steps: int) -> int:
        """Items of each group in the sample of a phase of so many steps; 0 where it is too short for a look."""
        looks = self.points + 1
        share = int(PRICE * steps * self.per_step / (looks * self.groups)) if self.points else 0
        return min(MOST, share) if share >= LEAST else 0

    def due(self, at: Position) -> bool:
        """Whether a sample is scored after this step; the scores of the last step are taken in any case."""
        after = at.number + 1
        return after < at.total and after * self.points // at.total > at.number * self.points // at.total
