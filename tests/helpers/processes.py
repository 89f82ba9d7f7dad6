"""Processes that tests start: where the toy runs' script lies, and the environment that finds our packages."""

import os
import sys
from pathlib import Path

TOY_RUN = str(Path(__file__).with_name("toy_run.py"))


def environment(**extra):
    """This process's environment with the folders that pytest puts on the path."""
    folders = [p for p in sys.path if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1", **extra}
