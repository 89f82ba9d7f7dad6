"""What every command does with a user's mistake: one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence

from common import notes
from common.errors import Interrupted, UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EEXIST, errno.ENOTDIR)


def shortened(text: str, most: int = 1500) -> str:
    """A text whose middle is left out where it is longer."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def main(body: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs `body(argv)`; a user's mistake becomes one line on stderr and exit code 2, Ctrl-C becomes 130, and
    SIGTERM or SIGHUP, where the state could be saved, 143."""
    for stream in (sys.stdout, sys.stderr):  # file names may hold bytes that are no text in the terminal's encoding
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    notes.drop()  # of an earlier command in this process
    try:
        return body(list(sys.argv[1:] if argv is None else argv)) or 0
    except UserError as error:
        print(f"error: {shortened(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped.", file=sys.stderr)
        return getattr(stop, "code", 130)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # a connection, not a file
        advice = "; free space or choose another --output-dir" if error.errno in NO_ROOM else ""
        print(f"error: {shortened(str(error.filename or 'cannot write'))}: {error.strerror}{advice}.", file=sys.stderr)
        return 2
