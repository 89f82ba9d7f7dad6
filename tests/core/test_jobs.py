"""Functions in processes of their own: in the order of what they need, and all stopped when one fails."""

import operator
import time
from functools import partial

import pytest

from common.errors import UserError
from common.jobs import Job, carry_out
from common.record import write_bytes


def wait_for(path):
    """What cannot end before another job has written the file; gives up after ten minutes."""
    for _ in range(12_000):
        if path.exists():
            return
        time.sleep(0.05)
    raise UserError(f"{path.name} never came.")


def test_jobs_run_together_and_after_what_they_need(tmp_path):
    mark, other = tmp_path / "mark", tmp_path / "other"
    told = []
    jobs = [
        Job("last", partial(write_bytes, tmp_path / "last", b""), tmp_path / "last.txt", ["waits", "writes"]),
        Job("waits", partial(wait_for, mark), tmp_path / "waits.txt"),
        Job("writes", partial(write_bytes, mark, b""), tmp_path / "writes.txt"),
        Job("unneeded", partial(write_bytes, other, b""), tmp_path / "unneeded.txt"),
    ]
    carry_out(jobs, 2, lambda job: told.append(("begins", job.name)), lambda job: told.append(("ends", job.name)))
    assert told[:2] == [("begins", "waits"), ("begins", "writes")] and other.exists()
    assert told.index(("begins", "last")) > max(told.index(("ends", name)) for name in ("waits", "writes"))


def test_a_job_that_fails_is_told_and_stops_the_others(tmp_path):
    jobs = [
        Job("waits", partial(wait_for, tmp_path / "never"), tmp_path / "waits.txt"),
        Job("fails", partial(wait_for, 3), tmp_path / "fails.txt"),
    ]
    with pytest.raises(UserError, match="fails: .*'int' object has no attribute"):
        carry_out(jobs, 2, print, print)
    log = tmp_path / "waits.txt"
    assert not log.exists() or "never came" not in log.read_text(), "it was stopped, or not begun"
    with pytest.raises(UserError, match="fails: exit code 7"):
        carry_out([Job("fails", partial(operator.add, 3, 4), tmp_path / "fails.txt")], 1, print, print)
