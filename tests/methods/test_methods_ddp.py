"""Methods on two ranks: what they measure and remember is the same on both, and equals one process where it can."""

import json
import subprocess
import sys

import pytest
import torch
from processes import TOY_RUN, environment
from test_ddp import scenario
from toy_run import start

pytestmark = pytest.mark.slow
# one of each kind of thing that ranks could disagree about
SCENARIOS = [
    scenario("importances", method="ewc", steps=2, fisher_batch=1),
    scenario("path", method="si", steps=2),
    scenario("memory", method="der_pp", steps=2, exemplars=2),
    scenario("prototypes", method="gs_lora_pp", steps=2),
    scenario("cosine head", method="lucir", steps=2),
    scenario("nearest mean", method="icarl", steps=2),
    scenario("mask", method="salun", steps=2),
    scenario("average", method="scrub_s", steps=2, rounds=2),
    scenario("own module", method="lirf", steps=2),
    scenario("nothing trained", method="ssd", steps=2),
    scenario("recorded batches", method="amnesiac_batch", steps=2),
    scenario("second model", method="bad_teaching", steps=2),
]
# only in a forget phase do ranks draw wrong labels of their own, so that one process would draw others
EQUAL = [
    {**s, "name": f"{s['name']} alone", "order": "learn"}
    for s in SCENARIOS
    if s["name"] in ("importances", "memory", "prototypes", "cosine head", "nearest mean", "path")
]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Folder with the results of all scenarios on two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "scenarios.json").write_text(json.dumps([*SCENARIOS, *EQUAL]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [TOY_RUN, "ranks", str(folder / "scenarios.json"), str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", [s["name"] for s in SCENARIOS])
def test_both_ranks_end_with_the_same_bits(name, two_ranks):
    first, second = torch.load(two_ranks / f"{name}.pt", weights_only=True)
    assert first["metrics"] == second["metrics"]
    for key, value in first["last"].items():
        assert torch.equal(value, second["last"][key]) and torch.isfinite(value.float()).all(), key


@pytest.mark.parametrize("case", EQUAL, ids=lambda s: s["name"])
def test_two_ranks_equal_one_process_with_the_doubled_batch(case, two_ranks, tmp_path):
    doubled = {**case, "settings": {**case["settings"], "batch_size": 2 * case["settings"]["batch_size"]}}
    trainer = start(doubled, tmp_path)
    trainer.swap()
    first, _ = torch.load(two_ranks / f"{case['name']}.pt", weights_only=True)
    for name, value in trainer.model.state_dict().items():
        # Adam turns rounding into steps where a gradient is nearly zero
        torch.testing.assert_close(first["last"][name], value, rtol=1e-3, atol=2e-3)
