"""Remarks on how data was read, told once a command gets to work: where it ends in an error, the error stands alone."""

from __future__ import annotations

import sys

_waiting: dict[str, None] = {}


def note(text: str) -> None:
    """Keeps a line until `tell`."""
    _waiting[text] = None


def tell(aloud: bool) -> None:
    """Prints what was kept on stderr, on one rank of several."""
    if _waiting and aloud:
        print(*_waiting, sep="\n", file=sys.stderr)
    drop()


def drop() -> None:
    """Forgets what was kept."""
    _waiting.clear()
