"""`python -m common.app RUN`: a page on this machine to try a run on."""

from __future__ import annotations

import sys
from pathlib import Path

from common.app.page import build, serve
from common.app.panels import Panels
from common.cli import main
from common.config import Parser
from common.domains import session_of
from common.knobs import check


def body(argv: list[str]) -> int:
    """Starts the page and waits."""
    parser = Parser(prog="python -m common.app", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--checkpoint", default="", help="its base model, where that has moved")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    args = parser.parse_args(argv)
    check("`--port`", args.port, {"least": 1, "most": 65_535})
    run = Path(args.run)
    given = {"checkpoint": args.checkpoint} if args.checkpoint else {}
    serve(build(Panels(session_of(run), run, given), run), args.port)
    return 0


if __name__ == "__main__":
    sys.exit(main(body))
