"""The domain of a run by its record, for commands that serve all of them. Nothing here knows which domains there are."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from common.errors import UserError
from common.record import read_run_config
from common.session import Session


def session_of(run: Path) -> Session:
    """The session of the domain that a run folder names: the SESSION of the package behind its console command.

    Raises:
        UserError: no run, or its domain is not installed.
    """
    name = str(read_run_config(run)["identity"].get("domain", ""))
    commands = list(entry_points(group="console_scripts", name=f"ks-{name}"))
    if not commands:
        raise UserError(f"{run} is of the domain {name!r}, which is not installed; run: pip install -e .")
    found = import_module(f"{commands[0].module.partition('.')[0]}.session").SESSION
    if not isinstance(found, Session):
        raise UserError(f"{commands[0].module} has no Session.")
    return found
