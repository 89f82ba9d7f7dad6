"""Where the answers on forgotten items go, and how far kept classes are below their best."""

from __future__ import annotations

import pytest
import torch
from blobs import REST, pretrained, trainer

from common.domain import ClassTable
from common.evaluation.spill import expected, from_peak, spill, variation
from common.plan import make_plan
from common.record import METRICS, read_lines
from common.report.runs import read_run
from common.report.verdict import verdicts

TABLE = ClassTable(("a", "b", "c", "new"))


def test_the_expected_answers_are_the_base_s_without_what_is_gone_or_unknown():
    plan = make_plan("fftl", ["new"], ["a"], ["b", "c"])
    scores = torch.tensor([[9.0, 1.0, 1.0, 5.0], [9.0, 0.0, 2.0, 5.0]])
    found = expected({"a": scores}, plan, TABLE)
    share = scores[:, 1:3].softmax(1).mean(0).tolist()
    assert found["1"]["a"] == pytest.approx(dict(zip("bc", share, strict=True)), abs=1e-4)
    assert set(found["2"]["a"]) == {"b", "c", "new"}  # learned by then


def test_spill_counts_answers_confidence_and_the_distance_to_the_expected_ones():
    scores = torch.tensor([[0.9, 0.05, 0.05], [0.6, 0.4, 1e-9], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]).log()
    told = spill({"c": scores}, {"c": {"a": 0.5, "b": 0.5}}, TABLE)["c"]
    assert told["answers"] == {"a": 0.75, "b": 0.25}
    assert told["confidence"] == pytest.approx((0.9 + 0.6 + 0.8 + 0.7) / 4, abs=1e-4)
    mean = scores.exp().mean(0)
    assert told["distance"] == pytest.approx(0.5 * (mean - torch.tensor([0.5, 0.5, 0])).abs().sum().item(), abs=1e-3)
    assert "distance" not in spill({"c": scores}, {}, TABLE)["c"]


def test_variation_is_zero_of_equals_and_one_of_strangers():
    assert variation({"a": 0.3, "b": 0.7}, {"b": 0.7, "a": 0.3}) == 0
    assert variation({"a": 1.0}, {"b": 1.0}) == 1


def test_the_loss_from_the_peak_counts_from_the_best_moment():
    history = [{"a": 50.0, "b": 90.0}, {"a": 80.0, "b": 90.0}, {"a": 60.0, "b": 95.0}]
    assert from_peak(history, ["a", "b"]) == {"a": 20.0}


def test_a_run_records_both_and_the_report_warns_of_a_class_that_was_renamed(tmp_path):
    plan = make_plan("fftl", ["c4"], ["c0"], REST)
    t = trainer(pretrained(4), plan, "replay", tmp_path, steps=2)
    end = t.method.end_phase

    def renamed(phase):
        """All that was c0 is called c1."""
        end(phase)
        with torch.no_grad():
            t.model.head.weight[1] = t.model.head.weight[0]
            t.model.head.bias[1] = t.model.head.bias[0] + 50
            t.model.head.bias[0] -= 50

    t.method.end_phase = renamed
    t.swap()
    lines = read_lines(tmp_path / METRICS)
    assert [line["phase"] for line in lines if "expected" in line] == [0]
    first, last = (line["spill"]["c0"] for line in lines if "spill" in line)
    assert last["answers"] == {"c1": 1.0} and last["confidence"] > 0.95 and last["distance"] > 0.5
    run = read_run(tmp_path)
    words = {v.group: v.warning for v in verdicts(run)}
    assert words["forget"].startswith("100 % of c0 is now called c1, with confidence")
    assert "below its best" in words["retain"]  # c2 and c3 are called c1 as well
