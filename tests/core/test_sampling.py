"""Scores of a small sample on the way: eight a phase, at a known price, and without any effect on what is trained."""

import pytest
import torch
from toy import ToyClassification, make_trainer, swap_plan

from common.domain import Evaluation
from common.errors import Interrupted
from common.methods._base import Position
from common.record import METRICS, STEPS, read_lines
from common.sampling import LEAST, MOST, PRICE, Sampling
from common.splits import spaced
from common.train_config import TrainConfig

PHASE = swap_plan("learn").phases[0]


class Sampled(ToyClassification):
    """A toy that scores a few test items where it is asked to."""

    def evaluate_groups(self, model, groups, most=0):
        if not most:
            return super().evaluate_groups(model, groups)
        found = {}
        for group, classes in groups.items():
            items = [item for c in classes for item in self._of([c], False)][:most]
            scores, labels = self.answers(model, self.collate(items))
            found[group] = Evaluation({"total": 100 * (scores.argmax(-1) == labels).float().mean().item()})
        return found


def trainer_of(folder, **settings):
    """Phases long enough for a sample of four items of each of three groups."""
    return make_trainer(Sampled(dropout=0.1), swap_plan("fltf"), "gs_lora", folder,
                           **{"steps": 50, "batch_size": 8, "gallery": 0, **settings})  # fmt: skip


def run(folder, **settings):
    trainer = trainer_of(folder, **settings)
    trainer.swap()
    return trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("sampled")
    return {points: (root / str(points), run(root / str(points), curve_points=points)) for points in (0, 8)}


def test_a_phase_is_sampled_at_its_start_and_eight_times_after(runs):
    lines = read_lines(runs[8][0] / METRICS)
    for phase in (1, 2):
        own = [line for line in lines if "sample" in line and line["phase"] == phase]
        assert [line["step"] for line in own] == [0, *(-(-50 * k // 8) for k in range(1, 9))]
        assert {line["items"] for line in own} == {4} and set(own[0]["sample"]) == {"learn", "forget", "retain"}


def test_what_is_trained_is_the_same_without_a_sample(runs):
    (plain, without), (sampled, with_sample) = runs[0], runs[8]
    assert (plain / STEPS).read_bytes() == (sampled / STEPS).read_bytes()
    for name, value in without.model.state_dict().items():
        assert torch.equal(with_sample.model.state_dict()[name], value), name
    rest = [line for line in read_lines(sampled / METRICS) if "sample" not in line]
    assert rest == read_lines(plain / METRICS)


def test_a_run_stopped_between_two_looks_ends_with_the_same_lines(runs, tmp_path):
    trainer = trainer_of(tmp_path)
    look, seen = trainer.observer.look, []

    def counted(at):
        seen.append(look(at))
        trainer.stop.asked = len(seen) == 10  # in the second phase

    trainer.observer.look = counted
    with pytest.raises(Interrupted, match="phase 2 forget"):
        trainer.swap()
    run(tmp_path)
    assert (tmp_path / METRICS).read_bytes() == (runs[8][0] / METRICS).read_bytes()


@pytest.mark.parametrize("steps, batch, groups", [(1, 1, 1), (50, 8, 3), (100, 32, 3), (5000, 64, 2), (20, 8, 10)])
def test_all_looks_together_see_a_small_share_of_what_is_trained_on(steps, batch, groups):
    sampling = Sampling(TrainConfig(batch_size=batch), groups, lambda phase: False)
    size = sampling.size(PHASE, steps)
    assert (8 + 1) * groups * size <= PRICE * steps * 2 * batch and (size == 0 or LEAST <= size <= MOST)
    due = [n + 1 for n in range(steps) if sampling.due(Position(PHASE, n, steps, 1))]
    assert len(due) == min(8, steps) - 1 and steps not in due


@pytest.mark.parametrize("end", [75, 83, 110, 400])
def test_a_phase_that_settles_is_sampled_eight_times_however_early_it_ends(end):
    sampling = Sampling(TrainConfig(batch_size=8), 3, lambda phase: True)
    size = sampling.size(PHASE, 400)
    looks = 2 + len(
        [n + 1 for n in range(end - 1) if sampling.due(Position(PHASE, n, 400, 1))]
    )  # the first and the last
    assert size >= LEAST and looks >= 9 and looks * 3 * size <= PRICE * end * 16


def test_short_runs_and_those_that_do_not_want_it_take_no_sample(tmp_path):
    assert Sampling(TrainConfig(curve_points=0), 1, lambda phase: False).size(PHASE, 10**6) == 0
    short = run(tmp_path, steps=4)
    assert not [line for line in short.observer.metrics if "sample" in line]


def test_spaced_numbers_come_in_turn_from_every_list():
    assert spaced([range(100), [200, 201], []], 6) == [0, 200, 50, 201]
    assert spaced([[7, 8, 9]], 10) == [7, 8, 9] and spaced([], 3) == []
    assert spaced([range(10), range(10, 20), range(20, 30)], 4) == [0, 10, 20, 5]
    assert spaced([[1, 2], [2, 3]], 9) == [1, 2, 3]
