"""How far long work is: a bar on a terminal, a line now and then in a log, both with rate and time left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from common import distributed

EVERY = 30.0  # seconds between two lines in a log
CHUNK, PIECE = 256, 16  # pieces handed to the threads at a time, and items of a piece
T = TypeVar("T")
R = TypeVar("R")


class Progress:
    """A tqdm bar on a terminal; elsewhere a line every 30 seconds, and one at the end where `last` asks for it."""

    def __init__(
        self, title: str, total: int, start: int = 0, show: bool = True, unit: str = "step", last: bool = True
    ) -> None:
        self.title, self.total, self.count, self.start, self.unit, self.last = title, total, start, start, unit, last
        self.began = self.told = time.monotonic()
        self.loss: float | None = None
        self.bar = None
        self.lines = show and not sys.stderr.isatty()
        if show and not self.lines:
            self.bar = tqdm(
                total=total,
                initial=start,
                desc=title,
                unit=unit,
                leave=False,
                dynamic_ncols=True,
                delay=0 if last else 1,
            )

    def update(self, loss: float | None = None, count: int = 1) -> None:
        """`count` more are done, the last with this loss (smoothed for display)."""
        self.count += count
        if loss is not None:
            self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        if self.bar is not None:
            if self.loss is not None:
                self.bar.set_postfix_str(f"loss {self.loss:.3f}", refresh=False)
            self.bar.update(count)
        elif self.lines:
            now = time.monotonic()
            if now - self.told >= EVERY or (self.last and self.count == self.total):
                self.told = now
                print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        rate = (self.count - self.start) / max(now - self.began, 1e-9)
        left = tqdm.format_interval((self.total - self.count) / max(rate, 1e-9))
        speed = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/{self.unit}"
        loss = f"  loss {self.loss:.3f}" if self.loss is not None else ""
        return f"{self.title}: {self.unit} {self.count}/{self.total}{loss}  {speed}, {left} left"

    def close(self) -> None:
        """Takes the bar off the screen."""
        if self.bar is not None:
            self.bar.close()


def watched(items: Iterable[T], total: int, title: str, unit: str = "batch") -> Iterator[T]:
    """The items, with their progress shown."""
    progress = Progress(title, total, show=distributed.is_main(), unit=unit, last=False)
    try:
        for item in items:
            yield item
            progress.update()
    finally:
        progress.close()


def in_threads(function: Callable[[T], R], items: Sequence[T], title: str, unit: str = "image") -> Iterator[R]:
    """`function` of every item, in order, by several threads, with the progress shown; few are in work at a time."""

    def some(start: int) -> list[R]:
        return [function(item) for item in items[start : start + PIECE]]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        starts = range(0, len(items), PIECE)
        chunks = (starts[i : i + CHUNK] for i in range(0, len(starts), CHUNK))
        found = (one for chunk in chunks for piece in pool.map(some, chunk) for one in piece)
        yield from watched(found, len(items), title, unit)
