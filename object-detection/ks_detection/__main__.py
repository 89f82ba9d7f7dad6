"""`ks-detection VERB flags...`, also as `python -m ks_detection`."""

import sys

from common.commands import console
from ks_detection.session import SESSION


def main() -> int:
    """The console command."""
    return console(SESSION)


if __name__ == "__main__":
    sys.exit(main())
