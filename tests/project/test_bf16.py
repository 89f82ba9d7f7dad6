"""Every domain under bf16 autocast, which is the default where the processor has it and works slowly elsewhere."""

import math

import pytest
import test_segmentation_domain
import tiny_swap
from colours import COLOURS, domain, save_folders, spec
from ks_classification.models import build
from ks_classification.session import SESSION
from toy import make_trainer

from common import commands
from common.domain import Domain
from common.plan import make_plan
from common.record import METRICS, STEPS, read_lines
from common.schema import read_json
from common.train_config import TrainConfig

BF16 = ["--precision", "bf16", "--device", "cpu", "--threads", "1", "--gallery", "0", "--no-report"]


def classification() -> tuple[Domain, dict]:
    groups = {"learn": ["white"], "forget": ["red"], "retain": ["green", "blue"]}
    known = [*groups["forget"], *groups["retain"]]
    return domain(groups, base=build.build(spec(known)), names=known), groups


def detection() -> tuple[Domain, dict]:
    return tiny_swap.domain(), tiny_swap.GROUPS


def segmentation() -> tuple[Domain, dict]:
    return test_segmentation_domain.domain(eval_batch=6), test_segmentation_domain.GROUPS


def recorded(folder) -> tuple[list[dict], list[dict]]:
    """(lines of scores, lines of losses) of a run, all of them finite."""
    scores = [line for line in read_lines(folder / METRICS) if "score" in line]
    steps = read_lines(folder / STEPS)
    assert all(math.isfinite(line["score"]) for line in scores)
    assert all(math.isfinite(value) for line in steps for value in line.values())
    return scores, steps


@pytest.mark.parametrize("make", [classification, detection, segmentation])
def test_a_swap_with_the_default_method_has_finite_losses_and_all_scores(make, tmp_path):
    own, groups = make()
    plan = make_plan("fltf", *(groups[name] for name in ("learn", "forget", "retain")))
    make_trainer(own, plan, TrainConfig.method, tmp_path, steps=2, batch_size=2, lr=1e-3, precision="bf16").swap()
    scores, steps = recorded(tmp_path)
    assert [(line["phase"], line["group"]) for line in scores] == [(p, g) for p in range(3) for g in plan.groups]
    assert [(line["phase"], line["step"]) for line in steps] == [(p, s) for p in (1, 2) for s in (0, 1)]


def test_a_kept_stem_serves_batches_under_autocast(tmp_path):
    """The flags of runs/base_tinyimagenet50.sh on colours, then a swap on what they made."""
    data, base, out = save_folders(tmp_path / "data"), tmp_path / "base", tmp_path / "swap"
    known = [name for name in COLOURS if name != "white"]
    common = ["--data", data, "--feature-cache", str(tmp_path / "kept"), "--views", "2", "--batch-size", "4", *BF16]
    model = ["--model", "hybrid_mobilenetv2", "--img-size", "32", "--model-args", "embed_dim=48,depth=1"]
    model += ["--stem-weights", "random"]
    made = [*model, *common, "--steps", "2", "--classes", ",".join(known), "--output-dir", str(base)]
    assert commands.main(SESSION, "pretrain", made) == 0
    flags = [
        "--checkpoint",
        str(base),
        "--learn",
        "white",
        "--forget",
        "red",
        "--lora-rank",
        "2",
        "--steps",
        "1",
        "--allow-chance",
    ]
    assert commands.main(SESSION, "swap", [*flags, *common, "--output-dir", str(out)]) == 0
    for folder in (base, out):
        recorded(folder)
        assert read_json(folder / "config.json")["identity"]["data"]["views"] == 2
    assert list((tmp_path / "kept").glob("*.bin"))
