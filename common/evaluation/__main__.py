"""`python -m common.evaluation validate`: the tests of forgetting, tested on models of which it is known what they know."""

from __future__ import annotations

import sys

from common.cli import main
from common.config import Parser
from common.evaluation.prove import one_thread
from common.evaluation.validate import HELD_OUT, lines, table
from common.knobs import check


def body(argv: list[str]) -> int:
    """Prints the table; exit code 1 where a line is not as expected."""
    parser = Parser(prog="python -m common.evaluation", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=["validate"], help="the table of known answers")
    parser.add_argument("--models", type=int, default=HELD_OUT, help="held-out models that never saw the classes")
    args = parser.parse_args(argv)
    check("`--models`", args.models, {"least": 2, "most": 1000})
    with one_thread():
        found = list(lines(args.models))
    print(table(found))
    return 0 if all(line.passed for line in found) else 1


if __name__ == "__main__":
    sys.exit(main(body))
