"""One process per run folder; what a dead process held is free."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib

import pytest
from processes import environment
from toy_run import start

from common import claim, cli
from common.claim import FILE, Claim, in_use
from common.errors import UserError
from common.record import METRICS, Run

OTHER = {"host": "another", "pid": 7, "job": [], "token": "x"}


def put(folder, age=0.0, **changes):
    path = folder / FILE
    path.write_text(json.dumps({**OTHER, **changes}))
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    return path


def test_a_second_run_in_a_folder_is_one_line_that_names_the_first(tmp_path, capsys):
    case = {"name": "x", "domain": "classification", "method": "gs_lora", "order": "fltf", "settings": {"steps": 1}}
    first = Run(tmp_path)
    first.open({"a": 1}, {}, False)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert cli.main(lambda argv: start(case, tmp_path).swap() and None, []) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"in use by process {os.getpid()} on {socket.gethostname()}" in err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    first.close()
    assert cli.main(lambda argv: start(case, tmp_path).swap() and None, []) == 0
    assert not (tmp_path / FILE).exists()


def test_of_many_processes_one_gets_the_folder(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from common.claim import Claim
own = Claim(Path({str(tmp_path)!r}))
try:
    own.take()
except ValueError:
    sys.exit(2)
print("mine", flush=True)
sys.stdin.read()
"""
    for _ in range(2):  # the second time the lock is that of a process killed in the first
        every = [
            subprocess.Popen(
                [sys.executable, "-c", code], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(6)
        ]
        while len(codes := [p.returncode for p in every if p.poll() is not None]) < 5:
            time.sleep(0.01)
        assert codes == [2] * 5
        winner = next(p for p in every if p.poll() is None)
        assert winner.stdout.readline() == b"mine\n" and in_use(tmp_path)
        winner.kill()
        for process in every:
            process.communicate()
        assert not in_use(tmp_path) and (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("age", "changes", "alive"),
    [
        (0, {}, True),
        (claim.LEASE - 30, {}, True),
        (claim.LEASE + 1, {}, False),
        (0, {"host": socket.gethostname(), "pid": 2**22 + 1}, False),  # no process has such a number
        (0, {"host": socket.gethostname(), "pid": os.getpid()}, False),  # our number, given to another one before
        (0, {"host": socket.gethostname(), "pid": os.getppid()}, True),
        (0, {"job": ["17", 0]}, False),  # an earlier start of the same job
        (0, {"job": ["17", 2]}, True),
        (0, {"job": ["18", 0]}, True),
    ],
)
def test_a_holder_is_dead_without_a_sign_of_life_a_process_or_its_turn(age, changes, alive, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    put(tmp_path, age, **changes)
    assert in_use(tmp_path) == alive
    own = Claim(tmp_path)
    if alive:
        with pytest.raises(UserError, match="in use by process"):
            own.take()
    else:
        own.take()
        own.check()
        own.release()
        assert not (tmp_path / FILE).exists()
    assert not list(tmp_path.glob(".*"))


def test_the_sign_of_life_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.01)
    own = Claim(tmp_path)
    own.take()
    os.utime(tmp_path / FILE, (0, 0))
    beat = threading.Event()
    while (tmp_path / FILE).stat().st_mtime == 0:
        assert not beat.wait(0.01)
    own.release()


def test_a_run_that_lost_its_folder_writes_nothing_more(tmp_path):
    run = Run(tmp_path)
    run.open({}, {}, False)
    run.append(METRICS, [{"a": 1}])
    put(tmp_path)
    with pytest.raises(UserError, match="took .* over"):
        run.append(METRICS, [{"a": 2}])
    run.close()
    assert (tmp_path / METRICS).read_text() == '{"a": 1}\n' and (tmp_path / FILE).exists()


def test_a_dead_holder_is_replaced_by_one_process_even_where_another_died_doing_so(tmp_path):
    put(tmp_path, claim.LEASE + 1)
    grave = tmp_path / f".{FILE}.{zlib.crc32(b'x'):08x}.part"
    grave.write_text(json.dumps({**OTHER, "token": "y"}))
    with pytest.raises(UserError, match="in use by process 7 on another"):
        Claim(tmp_path).take()
    os.utime(grave, (0, 0))
    own = Claim(tmp_path)
    own.take()
    own.check()
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_lock_is_respected_until_it_is_old(tmp_path):
    (tmp_path / FILE).write_text("{")
    assert in_use(tmp_path)
    os.utime(tmp_path / FILE, (0, 0))
    Claim(tmp_path).take()


def test_a_folder_is_free_again_after_an_error(tmp_path):
    run = Run(tmp_path)
    run.open({"a": 1}, {}, False)
    run.append(METRICS, [{"a": 1}])
    run.close()
    with pytest.raises(UserError, match="holds a run with a 1"):
        Run(tmp_path).open({"a": 2}, {}, False)
    assert not (tmp_path / FILE).exists()
