"""One run on two nodes: two torchrun agents that meet on this machine, started by the Slurm script of SCALING.md. A
worker that dies in mid-phase costs nothing, nor does a scheduler that takes the nodes away."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import TOY_RUN, environment

from common.adapters import WEIGHTS
from common.launch import NEW_STORE, launcher
from common.record import METRICS, STEPS, read_lines

ROOT = Path(__file__).parents[2]
SRUN = """#!/bin/bash
# as Slurm's: the command on every node; SIGTERM to all its processes
export BATCH_PID=$PPID
"$@" & one=$!
"$@" & two=$!
trap 'kill -TERM $(pgrep -P $one,$two) $one $two' TERM
wait; wait
"""
SCONTROL = """#!/bin/bash
case $1 in show) echo localhost; echo localhost;; requeue) echo "$2" >> requeued;; esac
"""
TORCHRUN = f"""#!/bin/bash
exec {sys.executable} -m torch.distributed.run --local-addr=localhost "$@"
"""


def script():
    """The Slurm script of SCALING.md, without the command at its end."""
    text = (ROOT / "common/SCALING.md").read_text()
    return re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?) [\w-]+/swap\.py [^&]* &\nwait\n```", text, re.DOTALL)[1]


def test_the_slurm_script_launches_as_sweeps_do():
    words = script().replace("\\\n", "").split()
    own = words[words.index("torchrun") + 1 :]
    launched = [re.sub(r":29\d\d\d$", ":29500", word) for word in launcher(2, 4, "$head", "$SLURM_JOB_ID")[2:]]
    assert sorted(own) == sorted(launched)
    assert all(f"export {name}={value}" in script() for name, value in NEW_STORE.items())


@pytest.fixture
def submitted(tmp_path):
    """A function that runs the script on scenarios as Slurm does; what it prints."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": TORCHRUN}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    settings = {"steps": 4, "batch_size": 2, "lr": 1e-3, "gallery": 0, "save_every": 0, "threads": 1}

    def run(events):
        common = {"domain": "detection", "method": "gs_lora", "order": "fltf", "settings": settings}
        cases = [{"name": name, "at": at, **common} for name, at in events.items()]
        (tmp_path / "cases.json").write_text(json.dumps(cases))
        known = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="17", SLURM_JOB_NODELIST="n[1-2]")
        words = script().replace(":29500", f":{port}").replace("per-node=4", "per-node=1")
        (tmp_path / "job").write_text(f"{words} {TOY_RUN} nodes cases.json . &\nwait\n")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": known, "cwd": tmp_path}
        job = subprocess.Popen(["bash", "job"], start_new_session=True, **pipes)
        try:
            return job.communicate(timeout=1200)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):  # as it should be
                os.killpg(job.pid, signal.SIGTERM)

    return run


@pytest.mark.slow
def test_runs_on_two_nodes_that_were_killed_or_preempted_end_as_undisturbed_ones(submitted, tmp_path):
    events = {"whole": None, "killed": [0, 6, "SIGKILL"], "preempted": [1, 2, "SIGUSR1"]}
    told = submitted(events)
    assert "continuing killed at phase 2" in told, told[-4000:]
    assert "stopped after phase 1 learn, step 3 of 4" in told, told[-4000:]
    assert not (tmp_path / "preempted" / "done.json").exists()
    told = submitted(events)
    assert "continuing preempted at phase 1, step 3" in told, told[-4000:]
    assert (tmp_path / "requeued").read_text() == "17\n", "once, and not when it had ended"
    one = tmp_path / "whole"
    assert len(read_lines(one / STEPS)) == 8
    assert json.loads((one / "config.json").read_text())["identity"]["world"] == 2
    for other in (tmp_path / "killed", tmp_path / "preempted"):
        for name in (METRICS, STEPS, f"adapter/{WEIGHTS}"):
            assert (other / name).read_bytes() == (one / name).read_bytes(), name
        assert {p.name for p in other.iterdir()} == {p.name for p in one.iterdir()}
