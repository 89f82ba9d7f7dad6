"""Names of classes, groups and plans: one line that a table, a page and a file can show."""

from __future__ import annotations

import re
from collections.abc import Iterable

from common.errors import UserError

LONGEST = 200  # characters
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_names(kind: str, names: Iterable[str]) -> None:
    """Raises UserError for a name that is blank, has more than one line, or is too long."""
    for name in names:
        if not name.strip() or len(name) > LONGEST or CONTROL.search(name):
            raise UserError(f"{kind} name {name[:40]!r}: a name is one line of 1 to {LONGEST} characters.")
