"""Attacks as functions of arrays: known answers on made-up data."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from common.domain import Prediction
from common.evaluation import intervals, verdict
from common.evaluation.attacks import membership, output, probe, prototype, radius, relearn, rmia, weights
from common.evaluation.attacks.shots import few, title
from common.evaluation.bench import Bench
from common.evaluation.budget import BUDGETS
from common.evaluation.figures import exceeding, leak, share


def blobs(n=30, classes=4, width=6, spread=0.3, seed=0):
    """(features [classes * n, width], labels): one tight cloud per class."""
    random = np.random.default_rng(seed)
    centres = 3 * np.random.default_rng(9).normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), n)
    return centres[labels] + spread * random.normal(size=(len(labels), width)), labels


def noise(n=30, classes=4, width=6, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(classes * n, width)), np.repeat(np.arange(classes), n)


def test_the_exact_interval_of_a_share():
    """Clopper and Pearson's own limits: 0 of n ends at 1 - 0.025^(1/n), and both ends mirror each other."""
    none = intervals.clopper_pearson(0, 20)
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(1 - 0.025 ** (1 / 20))
    all_of_them = intervals.clopper_pearson(20, 20)
    assert all_of_them.high == 1 and all_of_them.low == pytest.approx(1 - none.high)
    half = intervals.clopper_pearson(5, 10)
    assert half.low == pytest.approx(0.1871, abs=1e-4) and half.high == pytest.approx(0.8129, abs=1e-4)


def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(size=400)
    draws = intervals.resamples(400, 2000, seed=1)
    found = intervals.percentile(values.mean(), intervals.replicates(lambda at: values[at].mean(), draws), 400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_the_interval_of_a_distance_holds_it_though_its_replicates_lie_above():
    x, y = np.random.default_rng(0).normal(size=(2, 40, 8))

    def apart(at):
        return output.energy_distance(x[at], y[at])

    everything, draws = np.arange(40), intervals.resamples(40, 200, seed=1)
    value, moved = apart(everything), intervals.replicates(apart, draws)
    biased, found = (
        intervals.percentile(value, moved, 40),
        intervals.percentile(value, intervals.unbiased(value, moved), 40),
    )
    assert not biased.low <= value <= biased.high and 0 <= found.low <= value <= found.high
    assert found.high - found.low == pytest.approx(biased.high - biased.low)


def test_every_model_is_attacked_with_the_same_items():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    chosen = few(labels, 3, seed=5)
    assert list(np.bincount(labels[chosen])) == [3, 3, 3] and list(few(labels, 3, seed=5)) == list(chosen)
    assert list(few(labels, 3, seed=6)) != list(chosen)
    assert list(np.bincount(labels[few(labels, 0.1, 0)])) == [1, 2, 3] and len(few(labels, 0, 0)) == 60
    assert [title(s) for s in (1, 5, 0.02, 0)] == ["1 shot", "5 shots", "2 % of the data", "all data"]


def test_a_probe_finds_what_features_hold_and_nothing_in_noise():
    held = probe.recovered(blobs(), blobs(seed=1), [0, 1], shots=1, draws=3)
    assert held.shape == (3, 60) and held.mean() > 0.95
    empty = probe.recovered(noise(200), noise(200, seed=1), [0, 1], shots=5, draws=3)
    assert abs(empty.mean() - 0.25) < 0.06


def test_a_prototype_brings_a_class_back_without_touching_the_others():
    (x, y), test = blobs(), blobs(seed=1)
    head = prototype.class_means(x, y, 4)
    head[0] = -head[0]  # the row of class 0 is spoilt, the features are not
    found = prototype.recovered(head, (x, y), test, [0], shots=1, alpha=1, draws=2)
    assert found.forgotten.mean() > 0.95 and found.retained.mean() > 0.95
    kept = prototype.recovered(head, (x, y), test, [0], shots=1, alpha=0, draws=2)
    assert kept.forgotten.mean() == 0


def test_the_energy_distance_is_zero_between_equals_and_grows_with_the_shift():
    x, _ = noise(100)
    assert output.energy_distance(x, x) == pytest.approx(0)
    near, far = output.energy_distance(x, x + 0.5), output.energy_distance(x, x + 2)
    assert 0 < near < far


def test_confusion_counts_every_item():
    logits = np.eye(3)[[0, 0, 1, 2, 2, 2]] * 9
    found = output.confusion(logits, np.full(6, 0.7), np.array([0, 0, 0, 1, 1, 1]), ["a", "b", "c"])
    assert found[0]["answers"] == {"a": 2, "b": 1} and found[1]["answers"] == {"c": 3}
    assert found[0]["n"] == 3 and found[1]["confidence"] == pytest.approx(0.7)


def test_total_variation_runs_from_zero_to_one():
    a, b = np.array([[50.0, 0, 0]]), np.array([[0.0, 50, 0]])
    assert membership.total_variation(a, a) == 0
    assert membership.total_variation(a, b) == pytest.approx(1)


def test_the_machine_tells_the_answers_of_two_models_apart():
    random = np.random.default_rng(0)
    seen, never = 0.3 * random.normal(size=(40, 3)) + [4, 0, 0], 0.3 * random.normal(size=(40, 3)) + [0, 4, 0]
    assert membership.saw(seen[:30], never[:30], seen[30:]).mean() == 1
    assert membership.saw(seen[:30], never[:30], never[30:]).mean() == 0


def test_random_labels_give_half_an_area_under_the_curve():
    random = np.random.default_rng(0)
    scores = rmia.scores(*(random.uniform(0.2, 0.9, size) for size in (400, (2, 400), 100, (2, 100))))
    assert rmia.auc(scores[:200], scores[200:]) == pytest.approx(0.5, abs=0.06)
    assert rmia.auc(scores[:200] + 2, scores[200:]) == 1


def test_members_score_above_strangers():
    out = np.full((2, 50), 0.4)
    found = rmia.scores(np.r_[np.full(25, 0.9), np.full(25, 0.3)], out, np.full(30, 0.4), np.full((2, 30), 0.4))
    assert rmia.auc(found[:25], found[25:]) == 1


def outcomes(share, n=200, seed=0):
    return (np.random.default_rng(seed).uniform(size=(4, n)) < share).astype(float)


def test_the_leak_is_zero_at_the_references_and_one_at_the_original():
    references = {f"reference-{i}": outcomes(0.3, seed=i) for i in range(3)}
    original = outcomes(0.95, seed=9)
    like_reference = share("probe", "x", {"original": original, "result": outcomes(0.3, seed=7), **references}, 200)
    assert abs(like_reference.leak.value) < 0.1 and like_reference.leak.low < 0 and not like_reference.above
    like_original = share("probe", "x", {"original": original, "result": original, **references}, 200)
    assert like_original.leak.value == pytest.approx(1) and like_original.above


def test_a_leak_that_cannot_be_measured_is_none_with_a_reason():
    values = {"original": outcomes(0.9), "result": outcomes(0.5)}
    figure = share("probe", "x", values, 50)
    assert figure.leak is None and figure.no_leak == "no reference" and not figure.above
    found, reason = leak({"original": 0.3, "result": 0.2, "reference-1": 0.3}, {}, 10)
    assert found is None and "no better" in reason


def headlines(*chances):
    values = {"original": outcomes(0.9), "result": outcomes(0.5), "reference-1": outcomes(0.3)}
    figure = share("probe", "x", values, 20, headline=True)
    return [replace(figure, name=str(i), chance=chance) for i, chance in enumerate(chances)]


@pytest.mark.parametrize(
    ("chances", "names"),
    [
        ((0.02, 0.5, 0.5), []),  # alone it would be above
        ((0.008, 0.012, 0.5), ["0", "1"]),
        ((0.009, 0.001, 0.02), ["1", "0", "2"]),
        ((0.009, 0.001, 0.03), ["1", "0"]),
    ],
)
def test_headline_figures_are_tested_together(chances, names):
    assert [f.name for f in verdict.above(headlines(*chances))] == names


def test_references_with_weights_from_elsewhere_are_no_clean_floor():
    assert verdict.warnings({"a": 50}, 3) == verdict.warnings({"a": 50}, 0, ["--stem-weights"]) == []
    few, floor = verdict.warnings({"a": 3, "b": 50}, 3, ["--stem-weights"])
    assert "a (3)" in few and "b" not in few.split(":")[1] and "--stem-weights" in floor and "no clean floor" in floor


def test_a_single_item_above_references_at_zero_is_no_finding():
    assert exceeding(1 / 72, 1 / 72, 0.0, 72) > 0.025
    assert exceeding(0.5, 0.05, 0.3, 72) < 1e-4 and exceeding(0.3, 0.05, 0.3, 72) == 0.5


def test_rounding_to_integers_keeps_each_row_within_half_a_step():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        moved = (weights.to_integers(bits)(weight) - weight).abs().amax(1)
        step = weight.abs().amax(1) / (2 ** (bits - 1) - 1)
        assert (moved <= step / 2 + 1e-6).all() and (moved > 0).any()
    assert len(weights.to_integers(4)(weight)[0].unique()) <= 15


def test_the_radius_of_a_linear_model_is_the_distance_to_its_border():
    """Scores (x, 0): class 0 is named where the mean pixel is above 0, so that an image at -d is d away."""
    images = torch.tensor([-0.01, -0.02, 0.5, -0.5]).view(4, 1, 1, 1).expand(4, 1, 2, 2).clone()

    class Batch(NamedTuple):
        images: torch.Tensor

    class Lines:
        def predict(self, model, batch):
            mean = batch.images.mean((1, 2, 3))
            return Prediction(
                mean.sum(), torch.stack([mean, 0 * mean], 1), mean, torch.zeros(len(mean), dtype=torch.long)
            )

    found = radius.radii(Lines(), None, Batch(images), [1.0])
    assert found[:2] == pytest.approx([0.01, 0.02], abs=1e-3) and found[2] == 0 and found[3] == float("inf")
    scaled = radius.radii(Lines(), None, Batch(images), [0.5])  # a pixel's change is doubled by the normalisation
    assert scaled[:2] == pytest.approx([0.005, 0.01], abs=1e-3)
    left = radius.radii(Lines(), None, Batch(-images), [1.0], leave=True)
    assert left[:2] == pytest.approx([0.01, 0.02], abs=1e-3) and left[2] == 0


def test_only_the_pictures_that_count_are_searched():
    class Batch(NamedTuple):
        images: torch.Tensor
        names: list[str]
        part: str

    class Five:
        """Two batches of each class, with three pictures and with two."""

        def loader(self, classes, train):
            return [Batch(torch.zeros(n, 1), [f"{classes[0]}{n}{i}" for i in range(n)], "test") for n in (3, 2)]

        def item_names(self, batch):
            return batch.names

        def part_of(self, batch, items):
            return Batch(batch.images[items], batch.names[: int(items.sum())], batch.part)

        def shown(self, batch):
            return batch

    found = list(radius.few(Five(), ["a", "b", "c"], 2, 4))
    assert [b.names for b in found] == [["a30", "a31", "b30", "b31"], ["c30", "c31"]]
    assert [len(b.images) for b in found] == [4, 2] and found[0].part == "test"
    assert [len(b.images) for b in radius.few(Five(), ["a"], 4, 8)] == [4]


def test_an_index_of_two_models_that_never_came_back_is_not_one():
    assert relearn.anamnesis(None, None, 24) is None
    assert (
        relearn.anamnesis(12, None, 24) == 0.5
        and relearn.anamnesis(None, 12, 24) == 2
        and relearn.anamnesis(8, 8, 24) == 1
    )
    bench = Bench(["a"], ["b"], [], BUDGETS["quick"], 1e-3)
    flat = {"steps": [0, 12, 24], "share": [0.0, 0.1, 0.2], "rate": 1}
    bench.curves = {"relearn, 5 shots": dict.fromkeys(["result", "reference-1", "reference-2"], flat)}
    bench.score = 1.0
    assert bench.anamnesis()["relearn, 5 shots"]["index"] is None
    bench.curves["relearn, 5 shots"]["result"] = flat | {"share": [0.0, 0.9, 1.0]}
    assert bench.anamnesis()["relearn, 5 shots"]["index"] == 0.5
