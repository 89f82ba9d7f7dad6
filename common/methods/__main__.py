"""python -m common.methods: lists the methods, or writes the file of a new one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common import cli, methods
from common.errors import UserError
from common.record import write_bytes

TEMPLATE = Path(__file__).with_name("new_method.txt")


def new(name: str, folder: Path) -> Path:
    """Writes the file of a method with a working loss, to be changed; its path.

    Raises:
        UserError: no name for a module, or taken.
    """
    if not name.isidentifier() or name != name.lower() or name.startswith("_"):
        raise UserError(f"a method is named like a module, in small letters (my_method), got {name!r}.")
    path = folder / f"{name}.py"
    if path.exists():
        raise UserError(f"there is a method {name} already: {path}.")
    title = "".join(part.capitalize() for part in name.split("_"))
    write_bytes(path, TEMPLATE.read_text().format(name=name, title=title).encode())
    return path


def main(argv: Sequence[str]) -> None:
    """`new NAME`, or nothing for the list."""
    if not argv:
        for name in methods.available():
            print(f"{name:18} {sys.modules[methods.load(name).__module__].__doc__}")
        return
    if len(argv) != 2 or argv[0] != "new":
        raise UserError("usage: python -m common.methods [new NAME]")
    path = new(argv[1], Path(__file__).parent)
    print(f"wrote {path}; `swap.py --method {argv[1]} --help` shows its flags, and")
    print(f"  python -m pytest tests -k {argv[1]}\nruns it through every order and domain of the tests.")


if __name__ == "__main__":
    sys.exit(cli.main(main))
