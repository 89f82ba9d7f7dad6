"""Two ranks of half the batch equal one process with the whole batch; gradients of k batches equal one large batch."""

import json
import signal
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest
import torch
import torch.distributed.run
from processes import TOY_RUN, environment
from torch.distributed.elastic.multiprocessing import SignalException
from toy_run import start

from common import cli, launch
from common.record import read_lines

SHORT = {"steps": 4, "batch_size": 4, "lr": 1e-2, "gallery": 0}


def scenario(name, domain="classification", method="gs_lora", order="fltf", **settings):
    return {"name": name, "domain": domain, "method": method, "order": order, "settings": {**SHORT, **settings}}


# The toy's loss starts near ln 8 = 2.08: a bound there is reached by some items, and by the mean on one rank only.
SCENARIOS = [
    scenario("classification per item", bound=2.1),
    scenario("classification batch mean", bound=2.1, bound_per_item=False),
    scenario("classification accumulated", bound=2.1, accumulate=2),
    scenario("classification fused qkv", order="fftl", lora_position="all"),
    scenario("classification stack", order="flf", lora_between_phases="stack"),
    scenario("detection per item", "detection", bound=2.3),
    scenario("detection batch mean", "detection", bound=2.3, bound_per_item=False),
    scenario("detection attention", "detection", order="lfl", lora_position="all"),
    scenario("segmentation", "segmentation", bound=2.3),
    scenario("classification proximal", proximal=True),
    scenario("classification data guard", method="mask_replay", order="fftl", guard="data"),
    scenario("detection data guard", "detection", order="fftl", bound=2.3, guard="data"),
    scenario("classification subspace guard", order="fftl", guard="subspace", guard_energy=0.8),
    scenario("classification finetune", method="finetune"),
]

# one of each kind of thing that ranks could disagree about
METHODS = [
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
    for s in METHODS
    if s["name"] in ("importances", "memory", "prototypes", "cosine head", "nearest mean", "path")
]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Folder with the results of all scenarios on two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    unused = scenario("unused", "segmentation", method="finetune")  # a model with parameters no loss reaches
    (folder / "scenarios.json").write_text(json.dumps([*SCENARIOS, unused, *METHODS, *EQUAL]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [TOY_RUN, "ranks", str(folder / "scenarios.json"), str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=atol)


def trainable(trainer):
    names = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    return {n: v for n, v in trainer.model.state_dict().items() if n in names}


@pytest.mark.slow
@pytest.mark.parametrize("case", SCENARIOS, ids=lambda s: s["name"])
def test_two_ranks_equal_one_process_with_the_doubled_batch(case, two_ranks, tmp_path):
    doubled = {**case, "settings": {**case["settings"], "batch_size": 2 * SHORT["batch_size"]}}
    trainer = start(doubled, tmp_path)
    metrics = trainer.swap()
    first, second = torch.load(two_ranks / f"{case['name']}.pt", weights_only=True)
    for name, value in trainable(trainer).items():
        # Adam turns rounding into steps where a gradient is nearly zero, as many are when all parameters train
        close(first["last"][name], value, atol=1e-3 if case["method"] == "finetune" else 2e-5)
    assert first["metrics"] == second["metrics"]
    assert [m.get("score") for m in first["metrics"]] == [m.get("score") for m in metrics]
    ours, theirs = read_lines(tmp_path / "steps.jsonl"), read_lines(two_ranks / case["name"] / "steps.jsonl")
    assert len(ours) == len(theirs) == 4 * len(trainer.plan.phases)
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-3, abs=1e-5)
    moved = [n for n, v in trainable(trainer).items() if not torch.equal(v, first["first"][n])]
    assert moved


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(s["name"] for s in SCENARIOS), "unused"])
def test_ranks_hold_the_same_bits_from_start_to_end(name, two_ranks):
    first, second = torch.load(two_ranks / f"{name}.pt", weights_only=True)
    for moment in ("first", "last"):
        assert first[moment].keys() == second[moment].keys()
        for key in first[moment]:
            if "running_" not in key and "num_batches" not in key:  # statistics of a rank's own batches
                assert torch.equal(first[moment][key], second[moment][key]), (moment, key)


@pytest.mark.slow
@pytest.mark.parametrize("name", [s["name"] for s in SCENARIOS])
def test_only_what_trains_is_optimized_and_reduced(name, two_ranks):
    for rank in torch.load(two_ranks / f"{name}.pt", weights_only=True):
        assert rank["optimized"] and rank["reduced"]
        if "finetune" not in name:
            assert all("lora_" in n or "head" in n or "class_embed" in n for n in rank["trained"])
            frozen = [n for n in rank["last"] if n not in rank["trained"] and "past_" not in n]
            assert all(torch.equal(rank["first"][n], rank["last"][n]) for n in frozen)


# ---- methods: what they measure and remember is the same on both ranks, and equals one process where it can ----------


@pytest.mark.slow
@pytest.mark.parametrize("name", [s["name"] for s in METHODS])
def test_ranks_of_any_method_end_with_the_same_bits(name, two_ranks):
    first, second = torch.load(two_ranks / f"{name}.pt", weights_only=True)
    assert first["metrics"] == second["metrics"]
    for key, value in first["last"].items():
        assert torch.equal(value, second["last"][key]) and torch.isfinite(value.float()).all(), key


@pytest.mark.slow
@pytest.mark.parametrize("case", EQUAL, ids=lambda s: s["name"])
def test_two_ranks_of_a_method_equal_one_process_with_the_doubled_batch(case, two_ranks, tmp_path):
    doubled = {**case, "settings": {**case["settings"], "batch_size": 2 * case["settings"]["batch_size"]}}
    trainer = start(doubled, tmp_path)
    trainer.swap()
    first, _ = torch.load(two_ranks / f"{case['name']}.pt", weights_only=True)
    for name, value in trainer.model.state_dict().items():
        # Adam turns rounding into steps where a gradient is nearly zero
        torch.testing.assert_close(first["last"][name], value, rtol=1e-3, atol=2e-3)


# ---- in one process ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the classes to forget end with a loss")
@pytest.mark.parametrize("order", ["learn", "forget"])
@pytest.mark.parametrize("domain", ["classification", "segmentation"])
def test_accumulated_batches_equal_one_large_batch(order, domain, tmp_path):
    """For losses that are means over equally large batches, and a bound that is far away."""
    large = start(scenario("a", domain, order=order, batch_size=8, bound=50.0), tmp_path / "a")
    small = start(scenario("b", domain, order=order, batch_size=2, accumulate=4, bound=50.0), tmp_path / "b")
    large.swap()
    small.swap()
    for name, value in trainable(large).items():
        close(dict(small.model.named_parameters())[name].detach(), value)
    for a, b in zip(*(read_lines(tmp_path / x / "steps.jsonl") for x in "ab"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


# ---- --num-gpus ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module, words",
    [(None, ["swap.py", "swap", "--x"]), ("ks_x.__main__", ["--module", "ks_x", "swap", "--x"]),
     ("common.sweep", ["--module", "common.sweep", "swap", "--x"])],
)  # fmt: skip
def test_num_gpus_starts_the_same_command_in_torchs_launcher(module, words, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.distributed.run, "main", calls.append)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(sys, "argv", ["swap.py", "swap", "--x"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", module and ModuleSpec(module, None))
    two, one = (launch.LaunchConfig(num_gpus=n) for n in (2, 1))
    assert launch.relaunched(two) and not launch.relaunched(one)
    assert calls == [["--standalone", "--nproc-per-node=2", *words]]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launch.relaunched(two)


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_launcher_is_no_traceback(sent, code, monkeypatch):
    def stopped(words):
        raise SignalException("got a signal", sent)

    monkeypatch.setattr(torch.distributed.run, "main", stopped)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert cli.main(lambda argv: launch.relaunched(launch.LaunchConfig(num_gpus=2)), []) == code
