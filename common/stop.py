"""Signals: how a run is asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Whether the run shall end: `asked` turns true at the first Ctrl-C, SIGTERM (schedulers) or SIGHUP.

    code: exit code that goes with it: 130 for Ctrl-C, 143 for the others, which a scheduler may requeue on.
    """

    asked, code = False, 130

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a signal asks the run to end after the step in progress; a second Ctrl-C ends it at once. Other signals
        may come several times: a scheduler sends them to every process, and a launcher passes its own on."""

        def ask(signum: int, frame: Any) -> None:
            if self.asked and signum == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.asked:
                self.asked, self.code = True, 130 if signum == signal.SIGINT else 143

        before = {}
        try:
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP; nohup has it ignored
                if number and (name == "SIGINT" or signal.getsignal(number) != signal.SIG_IGN):
                    before[number] = signal.signal(number, ask)
        except ValueError:  # not in the main thread: the caller handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
