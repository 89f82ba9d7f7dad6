"""A data set whose keys are draws, for processes that prepare batches."""

from __future__ import annotations

from common.streams import Draw


class Drawn:
    """Items of a detection domain by draw."""

    def __init__(self, domain, wanted: frozenset[str]) -> None:
        self.domain, self.wanted = domain, wanted

    def __getitem__(self, draw: Draw) -> tuple:
        return self.domain.item(draw, self.wanted, True)

    def __len__(self) -> int:
        return len(self.domain.pictures["train"])
