"""`python -m common.adapters list | show | apply | remove | merge | diff | push | pull RUN...`: finished swaps as files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import adapters
from common.adapters import share, stack
from common.cli import main
from common.config import Parser

HELP = """Finished swaps as files; the base's weights are never written to.

  list RUN...             what each adapter learned and forgot, its size, its base
  show RUN                its model card
  apply RUN... OUTPUT     a run folder with all of them stacked in order; conflicts are errors
  remove STACK NAME OUTPUT  the same stack without one of its runs
  merge RUN OUTPUT        base weights with the update added, as one .safetensors (the verb export: other formats)
  diff RUN RUN            how far each moves every block, and how far they are apart
  push RUN OWNER/NAME     print what would be uploaded to the hub; with --yes upload it, with your own login
  pull OWNER/NAME OUTPUT  a run folder from the hub; give its base with --checkpoint where the hub has it not"""


def body(argv: list[str]) -> int:
    """One command."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m common.adapters", description=HELP, formatter_class=kind, allow_abbrev=False)
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("arguments", nargs="+", metavar="RUN", help="run folders, then what the command writes")
    parser.add_argument("--yes", action="store_true", help="push: upload")
    parser.add_argument("--license", default="", help="push: identifier for the model card, such as mit")
    parser.add_argument("--private", action="store_true", help="push: a repository that others cannot see")
    args = parser.parse_args(argv)
    if args.command == "push" and len(args.arguments) == 2:
        print(share.push(Path(args.arguments[0]), args.arguments[1], args.yes, args.license, args.private))
        return 0
    if args.yes or args.license or args.private:
        parser.error("--yes, --license and --private are for push")
    function, least, most = COMMANDS[args.command]
    if not least <= len(args.arguments) <= most:
        parser.error(
            f"{args.command} takes {least}{'' if most == least else ' or more'} arguments, got {len(args.arguments)}"
        )
    function(*args.arguments)
    return 0


def list_(*runs: str) -> None:
    """A table."""
    print(f"{'run':<24}{'learned':<20}{'forgot':<20}{'layers':>7}{'values':>10}  base (SHA-256)")
    for swap in map(stack.read, runs):
        plan = swap.info["plan"]
        gone = [c for action, gs in plan["steps"] if action == "forget" for g in gs for c in plan["groups"][g]]
        count = sum(t.numel() for name, t in swap.tensors.items() if ".lora_" in name)
        told = (
            f"{swap.name:<24}{','.join(swap.learned):<20}{','.join(gone):<20}{len(swap.info['layers']):>7}{count:>10,}"
        )
        print(f"{told}  {swap.info['base_sha256'][:16]}")


def show(run: str) -> None:
    """The model card."""
    print(adapters.card(stack.read(run).info), end="")


def apply(*arguments: str) -> None:
    """A stack of all runs but the last argument, which is written."""
    *runs, output = arguments
    stack.write(stack.stacked([stack.read(run) for run in runs]), Path(output))
    print(f"wrote {output}")


def remove(folder: str, name: str, output: str) -> None:
    """A stack without one of its runs."""
    runs = adapters.read(Path(folder) / "adapter")[0].get("stack", [folder])
    stack.write(stack.stacked([stack.read(run) for run in runs], name), Path(output))
    print(f"wrote {output}")


def merge(run: str, output: str) -> None:
    """One .safetensors."""
    stack.merge(stack.read(run), Path(output))
    print(f"wrote {output}")


def diff(one: str, other: str) -> None:
    """A table of norms by block."""
    found = stack.difference(stack.read(one), stack.read(other))
    names = list(next(iter(found.values())))
    print(f"{'block':<32}" + "".join(f"{name[:18]:>20}" for name in names))
    for block, norms in found.items():
        print(f"{block:<32}" + "".join(f"{norms[name]:20.4f}" for name in names))


def pull(name: str, output: str) -> None:
    """A run folder."""
    print(f"wrote {share.pull(name, Path(output))}")


MANY = 1000
COMMANDS: dict[str, tuple[Callable[..., Any], int, int]] = {"list": (list_, 1, MANY), "show": (show, 1, 1), "apply": (apply, 2, MANY), "remove": (remove, 3, 3),
            "push": (share.push, 2, 2), "pull": (pull, 2, 2), "merge": (merge, 2, 2), "diff": (diff, 2, 2)}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(body))
