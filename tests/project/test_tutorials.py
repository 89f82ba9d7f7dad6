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


# In a process of its own: the client leaves event loops and sockets open, which later tests would be blamed for. One
# kernel runs all of them, so that torch is imported once; each starts in its folder without the names of the last one.
RUN = """
import sys
from pathlib import Path
import nbformat
from nbclient import NotebookClient
read = [nbformat.read(path, 4) for path in sys.argv[2:]]
cells = []
for path, book in zip(sys.argv[2:], read):
    cells += [nbformat.v4.new_code_cell(f"%reset -f\\n%cd -q {Path(path).parent}"), *book.cells]
whole = nbformat.v4.new_notebook(cells=cells, metadata=read[0].metadata)
NotebookClient(whole, timeout=1800, kernel_name="python3").execute()
for number, book in enumerate(read):
    nbformat.write(book, f"{sys.argv[1]}/{number}.ipynb")
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All notebooks with their outputs, by path."""
    folder = tmp_path_factory.mktemp("done")
    command = [sys.executable, "-c", RUN, folder, *NOTEBOOKS]
    end = subprocess.run(command, env=environment(KS_TUTORIAL_STEPS="2"), capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    return {path: nbformat.read(folder / f"{number}.ipynb", 4) for number, path in enumerate(NOTEBOOKS)}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.parent.name)
def test_it_runs(path, done):
    book = done[path]
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")
    assert pictures(book) and "->" in "".join(o.get("text", "") for o in outputs(book))
