"""python -m common.methods: lists the methods, or writes the file of a new one."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from common import cli, methods
from common.errors import UserError
from common.methods._base import Method
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


def described(name: str) -> str:
    """What the list says of a method: its line, paper, what trains, what it needs, what it was checked against."""
    kind = methods.load(name)
    own = {key: vars(kind).get(key, getattr(Method, key)) for key in ("needs", "checked")}
    source = " ".join((kind.__doc__ or "").partition("Source: ")[2].split())
    paper = re.match(r".*?arXiv:[\d.]+|.*?\d{4}|[^.,(]*", source)
    against = (
        f"equations compared with {own['checked']}" if own["checked"] else "laws of its equations, no published code"
    )
    lines = [
        str(sys.modules[kind.__module__].__doc__).strip(),
        f"paper    {paper[0].replace('(', '').strip(' .') if paper and paper[0] else 'none'}",
        f"trains   {kind.scope(kind.Config())}",
        f"needs    {own['needs']}",
        f"checked  {against}",
    ]
    return f"{name:18} " + f"\n{'':19}".join(lines)


def main(argv: Sequence[str]) -> None:
    """`new NAME`, or nothing for the list."""
    if not argv:
        print("\n\n".join(map(described, methods.available())))
        return
    if len(argv) != 2 or argv[0] != "new":
        raise UserError("usage: python -m common.methods [new NAME]")
    path = new(argv[1], Path(__file__).parent)
    print(f"wrote {path}; `swap.py --method {argv[1]} --help` shows its flags, and")
    print(f"  python -m pytest tests -k {argv[1]}\nruns it through every order and domain of the tests.")


if __name__ == "__main__":
    sys.exit(cli.main(main))
