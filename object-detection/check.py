"""List everything that is wrong with a data set before it is trained on; exit code 1 if something stops a run."""

import sys

from common import cli
from common.config import Parser


def run(argv: list[str]) -> int:
    """The list from flags."""
    parser = Parser(prog="check.py", description=__doc__)
    parser.add_argument(
        "--data", required=True, help="COCO, VOC or YOLO folder, several separated by commas, or digits"
    )
    parser.add_argument("--limit", type=int, default=20, help="problems shown of each kind")
    args = parser.parse_args(argv)
    from ks_detection.data.check import check, describe

    data, problems = check(args.data)
    print(*describe(data), sep="\n")
    for kind in dict.fromkeys(problem.kind for problem in problems):
        found = [problem for problem in problems if problem.kind == kind]
        word = "error" if any(problem.fatal for problem in found) else "note"
        print(f"{word}: {kind} ({len(found)})")
        for problem in found[: args.limit]:
            print(f"  {problem.where}: {problem.text}")
        if len(found) > args.limit:
            print(f"  ... and {len(found) - args.limit} more")
    fatal = sum(problem.fatal for problem in problems)
    print(f"{fatal} errors, {len(problems) - fatal} notes" if problems else "no problem found")
    return 1 if fatal else 0


if __name__ == "__main__":
    sys.exit(cli.main(run))
