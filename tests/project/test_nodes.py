"""One run on two nodes: two torchrun agents that meet on this machine; a worker that dies in mid-phase costs nothing."""

import json
import socket
import subprocess
import sys

import pytest
from processes import TOY_RUN, environment

from common.adapters import WEIGHTS
from common.distributed import NEW_STORE, launcher
from common.record import METRICS, STEPS, read_lines

pytestmark = pytest.mark.slow


def on_two_nodes(folder, domain, kill=None):
    """The output of both agents of a run; `kill`: (rank, step) whose worker gets SIGKILL there, once."""
    folder.mkdir()
    case = {
        "name": "run", "domain": domain, "method": "gs_lora", "order": "fltf", "kill": kill,
        "settings": {"steps": 4, "batch_size": 4, "lr": 1e-2, "gallery": 0, "save_every": 0},
    }  # fmt: skip
    (folder / "cases.json").write_text(json.dumps([case]))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = [
        w if "endpoint" not in w else f"--rdzv-endpoint=localhost:{port}" for w in launcher(2, 1, "localhost", "test")
    ]
    command = [sys.executable, *words, "--local-addr=localhost", TOY_RUN, "nodes"]
    command += [str(folder / "cases.json"), str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment(**NEW_STORE)}
    agents = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        told = [agent.communicate(timeout=300)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], told[0][-3000:] + told[1][-3000:]
    return "\n".join(told)


@pytest.mark.parametrize(("domain", "rank"), [("detection", 0), ("segmentation", 1)])
def test_a_run_on_two_nodes_whose_worker_was_killed_ends_as_an_undisturbed_one(domain, rank, tmp_path):
    on_two_nodes(tmp_path / "whole", domain)
    told = on_two_nodes(tmp_path / "killed", domain, kill=(rank, 6))
    assert (tmp_path / "killed" / "killed").exists() and "continuing" in told
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    assert len(read_lines(whole / STEPS)) == 8
    for name in (METRICS, STEPS, f"adapter/{WEIGHTS}"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert {p.name for p in killed.iterdir()} == {p.name for p in whole.iterdir()}
    assert json.loads((whole / "config.json").read_text())["identity"]["world"] == 2
