"""Check segmentation data before training: every picture, every mask, every id; counts per class."""

import argparse
import sys

from common import cli
from common.config import Parser
from common.errors import UserError


def run(argv: list[str]) -> int:
    """The check from flags: a table, then every problem on a line; exit code 2 if there is one."""
    from ks_segmentation import layouts

    parser = Parser(prog="check.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("data", nargs="+", help="KIND:FOLDER, a folder of images/ and annotations/, or digits")
    parser.add_argument("--problems", type=int, default=20, help="print at most so many problems")
    args = parser.parse_args(argv)
    problems = []
    for text in args.data:
        problems += report(text, layouts.load(text))
    for problem in problems[: args.problems]:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems)} problems in {', '.join(args.data)}; mend them before training.")
    print("no problems found.")
    return 0


def report(text: str, data) -> list[str]:
    """Prints pictures and share of pixels per class and split; returns what is wrong."""
    problems, lines = [], []
    totals: dict[str, dict[int, tuple[int, int]]] = {}
    for split in ("train", "test"):
        items = getattr(data, split)
        found, wrong = read_all(items)
        problems += wrong
        problems += [] if items else [f"{text} has no {split} pictures."]
        totals[split] = found
    every = sum(pixels for found in totals.values() for _, pixels in found.values()) or 1
    print(f"{text}: {len(data.train)} training and {len(data.test)} test pictures, {len(data.classes)} classes")
    print(f"  {'class':<28}{'train pictures':>16}{'test pictures':>16}{'% of pixels':>14}")
    for index, name in enumerate(data.classes):
        train, test = (totals[split].get(index, (0, 0)) for split in ("train", "test"))
        lines.append(f"  {name:<28}{train[0]:>16}{test[0]:>16}{100 * (train[1] + test[1]) / every:>14.2f}")
        if not train[0]:
            lines[-1] += "   never in training"
    print("\n".join(lines))
    return problems


def read_all(items) -> tuple[dict[int, tuple[int, int]], list[str]]:
    """(class index -> (pictures, pixels), problems) of all items, each read in full."""
    from ks_segmentation.scan import pixels_per_class

    found: dict[int, tuple[int, int]] = {}
    wrong = []
    for item in items:
        try:
            item.picture()
            counts = pixels_per_class(item)
        except UserError as error:
            wrong.append(str(error))
            continue
        if not counts:
            wrong.append(f"mask of {item.name} holds no class at all.")
        for index, pixels in counts.items():
            pictures, before = found.get(index, (0, 0))
            found[index] = (pictures + 1, before + pixels)
    return found, wrong


if __name__ == "__main__":
    sys.exit(cli.main(run))
