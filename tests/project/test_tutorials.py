"""The notebooks: they run as they are, with few steps, and what is stored in them is small and names no machine."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from processes import environment

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("*/tutorial.ipynb"))


def outputs(book):
    return [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(book):
    return [o.data["image/png"] for o in outputs(book) if "image/png" in o.get("data", {})]


@pytest.mark.parametrize(
    "path", [n for n in NOTEBOOKS if outputs(nbformat.read(n, 4))], ids=lambda path: path.parent.name
)
def test_stored_outputs_are_whole_small_and_from_nowhere(path):
    book = nbformat.read(path, 4)
    assert pictures(book) and not [o for o in outputs(book) if o.output_type == "error"]
    assert path.stat().st_size < 200_000
    words = "".join(o.get("text", "") or str(o.get("data", {}).get("text/plain", "")) for o in outputs(book))
    assert not re.search(r"/(home|root|tmp|work|usr|Users|mnt|opt)/", words + "".join(c.source for c in book.cells))
    assert [c.execution_count for c in book.cells if c.cell_type == "code"] == list(
        range(1, 1 + sum(c.cell_type == "code" for c in book.cells))
    )


# in a process of its own: the client leaves event loops and sockets open, which later tests would be blamed for
RUN = """
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], 4)
NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(book, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.parent.name)
def test_it_runs(path, tmp_path):
    done, few = tmp_path / "done.ipynb", environment(KS_TUTORIAL_STEPS="2")
    end = subprocess.run([sys.executable, "-c", RUN, path, path.parent, done], env=few, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    book = nbformat.read(done, 4)
    assert pictures(book) and "->" in "".join(o.get("text", "") for o in outputs(book))
