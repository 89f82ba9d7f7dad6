"""Processes that tests start: where the toy runs' script lies, and the environment that finds our packages."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch.multiprocessing

TOY_RUN = str(Path(__file__).with_name("toy_run.py"))


@contextmanager
def beside(function, *arguments):
    """Inside, function(0, *arguments) runs in a process of its own; waits for its end."""
    other = torch.multiprocessing.spawn(_run, (function, *arguments), nprocs=1, join=False)
    try:
        yield
        other.join()
    finally:
        for process in other.processes:
            process.kill()


def _run(number, function, *arguments):
    function(number, *arguments)
    os._exit(0)  # without the interpreter's teardown, which threads of gloo that still run end with an abort


def environment(**extra):
    """This process's environment with the folders that pytest puts on the path."""
    folders = [p for p in sys.path if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1", **extra}
