"""The published scripts of GS-LoRA by name: `scripts/run_forget.py BLOCK --checkpoint ... --data ...`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from common import cli, commands
from common.config import flag, read_yaml
from common.errors import UserError
from ks_classification.session import SESSION

HOME = Path(__file__).resolve().parent.parent  # the folder of swap.py
TABLE = HOME / "configs" / "gs_lora_scripts.yaml"


def blocks(script: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """(entry script, block name -> its settings) of a published script; the first block is what it runs."""
    entry = read_yaml(TABLE)["scripts"][script]
    return entry["entry"], {name: entry["common"] | own for name, own in entry["blocks"].items()}


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Settings as flags of our scripts; `plan` names a file of configs/plans."""
    result = []
    for name, value in settings.items():
        if name == "plan":
            value = HOME / "configs" / "plans" / f"{value}.yaml"
        if isinstance(value, bool):
            result.append(flag(name) if value else flag(f"no_{name}"))
        else:
            result += [flag(name), str(value)]
    return result


def command(script: str, argv: list[str]) -> tuple[str, list[str]]:
    """(entry script, its flags) for `script BLOCK flags...`; flags given win over those of the block.

    Raises:
        UserError: unknown block; lists them.
    """
    entry, known = blocks(script)
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (next(iter(known)), argv)
    if name not in known:
        raise UserError(f"{script} has no block {name!r}; it has: {', '.join(known)}.")
    return entry, [*as_flags(known[name]), *rest]


def main(script: str) -> None:
    """Runs a block through our own script, which it names first."""

    def body(argv: list[str]) -> int | None:
        if {"-h", "--help"} & set(argv):
            entry, known = blocks(script)
            print(f"usage: {script}.py [BLOCK] [flags of {entry}.py]\n\nBLOCK, by default the first:")
            for name, settings in known.items():
                print(f"  {name:<20} {shlex.join(as_flags(settings))}")
            return 0
        entry, flags = command(script, argv)
        print(f"{entry}.py {shlex.join(flags)}", file=sys.stderr)
        return commands.VERBS[entry](SESSION, flags)

    sys.exit(cli.main(body))
