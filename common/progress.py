"""The progress bar of a phase."""

from __future__ import annotations

import sys


class Progress:
    """A tqdm bar on a terminal, about ten plain lines per phase elsewhere."""

    def __init__(self, title: str, total: int, start: int = 0, show: bool = True) -> None:
        self.title, self.total, self.count = title, total, start
        self.terminal = show and sys.stderr.isatty()
        self.lines = show and not self.terminal
        self.loss: float | None = None
        if self.terminal:
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, desc=title, unit="step", leave=False, dynamic_ncols=True)

    def update(self, loss: float) -> None:
        """One more step, with its loss (smoothed for display)."""
        self.count += 1
        self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        if self.terminal:
            self.bar.set_postfix_str(f"loss {self.loss:.3f}", refresh=False)
            self.bar.update()
        elif self.lines and (self.count == self.total or self.count % max(1, self.total // 10) == 0):
            print(f"{self.title}: step {self.count}/{self.total}  loss {self.loss:.3f}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Takes the bar off the screen."""
        if self.terminal:
            self.bar.close()
