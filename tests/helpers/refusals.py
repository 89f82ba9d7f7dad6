"""What every test of a bad input asserts: one line on stderr, exit code 2, no new file, no connection."""

import pytest
from ks_classification.session import SESSION as CLASSIFICATION
from ks_detection.session import SESSION as DETECTION
from ks_segmentation.session import SESSION as SEGMENTATION

DEEP = "[" * 100_000 + "]" * 100_000
SESSIONS = {"classification": CLASSIFICATION, "detection": DETECTION, "segmentation": SEGMENTATION}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing is fetched, and what is written by a relative name is seen."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, folder, run):
    """`run()` is the exit code of a command; FOLDER is what it may not change. The line."""
    before = files_in(folder)
    capsys.readouterr()
    code = run()
    lines = capsys.readouterr().err.splitlines()
    assert code == 2, lines
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 2000, lines
    assert files_in(folder) == before
    return lines[0]


def ids_of(cases):
    return [str(case)[:60] for case in cases]
