"""Flags of a sweep are looked at before its first row runs: a misspelled one would end rows hours later."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from common.errors import UserError
from common.plan_file import PlanConfig
from common.run_flags import parsed
from common.session import Session
from common.sweep.rows import HERE, Row

VERBS = ("swap", "pretrain")  # whose flags are the settings of a run


def check_flags(rows: Sequence[Row]) -> None:
    """Parses the flags of rows that are a swap or a pretraining; other commands are left to themselves.

    Rows share most of their words, so a row is parsed only where it has a word that no earlier one had.

    Raises:
        UserError: a flag that there is not, or a value that it does not take; names the row.
    """
    seen: set[str] = set()
    for row in rows:
        found = _command(row.words)
        if found is None or seen.issuperset(row.words):
            continue
        session, verb, flags = found
        try:
            settings = parsed(session, verb, session.tidy(list(flags)))
            if verb == "swap":
                settings[PlanConfig].chosen_order()
        except UserError as error:
            raise UserError(f"row {row.name}: {error}") from error
        except SystemExit as end:  # --help among the flags
            raise UserError(f"row {row.name}: its command only prints a text; remove --help.") from end
        seen.update(row.words)


def _command(words: Sequence[str]) -> tuple[Session, str, Sequence[str]] | None:
    """Session, verb and flags of a row such as `image-classification/swap.py ...` or `-m PACKAGE swap ...`."""
    if words[0] == "-m" and len(words) > 2 and words[1].isidentifier():
        package, verb, flags = words[1], words[2], words[3:]
    else:
        script = (Path.cwd() / words[0]).resolve()
        packages = list(script.parent.glob("*/session.py")) if script.parent.parent == HERE else []
        if not packages:
            return None
        package, verb, flags = packages[0].parent.name, script.stem, words[1:]
        if f"{script.parent}" not in sys.path:  # as Python does for a script
            sys.path.insert(0, f"{script.parent}")
    if verb not in VERBS:
        return None
    try:
        session = getattr(import_module(f"{package}.session"), "SESSION", None)
    except ModuleNotFoundError:
        return None
    return (session, verb, flags) if isinstance(session, Session) else None
