"""What is shown of long work in a log."""

import pytest

from common import progress
from common.progress import Progress, in_threads, watched


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_thirty_seconds_and_one_at_the_end(clock, capsys):
    bar = Progress("phase 1", 100)
    for _ in range(100):
        clock[0] += 1
        bar.update(2.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"phase 1: step {n}/100" for n in (30, 60, 90, 100)]
    assert "loss 2.000" in lines[0] and "1.0 step/s, 01:10 left" in lines[0]


def test_short_work_says_nothing(clock, capsys):
    assert list(watched(range(9), 9, "scoring")) == list(range(9))
    assert capsys.readouterr() == ("", "")


def test_long_reading_shows_rate_and_time_left(clock, capsys):
    for _ in watched(range(4), 4, "scoring"):
        clock[0] += 20
    assert capsys.readouterr().err.splitlines() == ["scoring: batch 2/4  20.0 s/batch, 00:40 left", "scoring: batch 4/4  20.0 s/batch, 00:00 left"]  # fmt: skip


def test_threads_keep_the_order_and_pass_errors_on(monkeypatch):
    monkeypatch.setattr(progress, "CHUNK", 3)
    monkeypatch.setattr(progress, "PIECE", 2)
    assert list(in_threads(lambda x: x * x, range(10), "squares")) == [x * x for x in range(10)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // x, range(10), "quotients"))
