"""Guards: what an earlier phase has forgotten stays forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from blobs import REST, pretrained, step_of, trainer
from safetensors.torch import load_file
from torch import nn

from common import lora, subspace
from common.adapters import merge
from common.errors import UserError
from common.losses import bounded_forgetting, masked_kl
from common.methods._base import Position, Step
from common.plan import from_record, make_plan
from common.plan_file import PlanConfig, plan_from
from common.record import METRICS, Run, read_lines
from common.session import Session
from common.settings import settings_from
from common.trainer import Trainer

PLAN = make_plan("fftl", ["c4"], ["c0"], REST)
SECOND = PLAN.phases[1]


def second_phase(folder, method="replay", **settings):
    """A trainer at the start of the phase that learns c4 after c0 is gone."""
    t = trainer(pretrained(4), PLAN, method, folder, **settings)
    t._begin(SECOND, 0)
    return t


def trained(t, phase):
    """Carries out one phase of a trainer."""
    if not t.observer.metrics:
        t.run.open(t._identity(), t._description(), False)
        t.observer.score(phase=0, action="start", epoch=0, step=0, end=True)
    t._train(phase)


def same_items(a, b):
    return all(x.names == y.names and torch.equal(x.points, y.points) for x, y in zip(a, b, strict=True))


# ---- which guard -----------------------------------------------------------------------------------------


def test_auto_shows_what_is_gone_where_the_method_may_see_it(tmp_path):
    kinds = {m: trainer(pretrained(4), PLAN, m, tmp_path / m).guard.kind(SECOND) for m in ("replay", "ewc", "retrain")}
    assert kinds == {"replay": "data", "ewc": "data", "retrain": "none"}
    assert trainer(pretrained(4), PLAN, "replay", tmp_path / "first").guard.kind(PLAN.phases[0]) == "none"


def test_a_guard_that_a_method_cannot_have_is_refused(tmp_path):
    with pytest.raises(UserError, match="--guard data.*must not see"):
        trainer(pretrained(4), PLAN, "amnesiac", tmp_path, guard="data")
    with pytest.raises(UserError, match="--guard subspace.*trains none"):
        trainer(pretrained(4), PLAN, "finetune", tmp_path, guard="subspace")


# ---- data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guard", "shown"), [("data", True), ("none", False), ("subspace", False)])
def test_the_third_batch_holds_what_is_gone_and_leaves_the_other_two_as_they_are(guard, shown, tmp_path):
    t, plain = (trainer(pretrained(4), PLAN, "replay", tmp_path / g, guard=g) for g in (guard, "none"))
    step = next(t._batches(SECOND, 0))
    assert (step[2] is not None) == shown and same_items(step[:2], next(plain._batches(SECOND, 0))[:2])
    if shown:
        assert {name[:2] for name in step[2].names} == {"c0"}
        batches, later = t._batches(SECOND, 0), t._batches(SECOND, 2)
        assert not same_items(next(batches), next(batches)) and same_items(next(batches), next(later))


def test_the_loss_is_the_distance_to_the_answers_at_the_start_without_what_is_gone_or_unknown(tmp_path):
    t = second_phase(tmp_path, guard="data", guard_weight=0.5)
    step = step_of(t, SECOND)
    t.model.eval()
    before = t.domain.predict(t.model, step.gone).scores.detach()
    with torch.no_grad():
        t.model.head.bias += torch.tensor([3.0, 0, 0, 0, 2.0, 0])  # c0 comes back, and c4 claims its items
    scores = t.domain.predict(t.model, step.gone).scores
    torch.testing.assert_close(t.guard.loss(step), 0.5 * masked_kl(scores, before, [0, 4]))
    assert t.guard.loss(step) > 0.5 * masked_kl(before, before, [0, 4]) + 0.1


def test_where_classes_do_not_exclude_one_another_the_loss_is_the_bounded_one(tmp_path, monkeypatch):
    domain = pretrained(4)
    monkeypatch.setattr(domain, "exclusive", False)
    for method, bound in (("replay", 4.0), ("ewc", 10.0)):
        settings = {"bound": bound} if method == "replay" else {}
        t = trainer(domain, PLAN, method, tmp_path / method, guard="data", **settings)
        t._begin(SECOND, 0)
        step = step_of(t, SECOND)
        t.model.eval()
        expected = bounded_forgetting(t.domain.predict(t.model, step.gone), bound)
        torch.testing.assert_close(t.guard.loss(step), expected)
        assert t.guard.teacher is None


def test_the_objective_adds_the_guard_to_any_method(tmp_path):
    t = second_phase(tmp_path, "replay", guard="data")
    step = step_of(t, SECOND)
    t.model.eval()
    without = Step(Position(SECOND, 0, 10), step.target, step.keep)
    torch.testing.assert_close(t.objective(step), t.objective(without) + t.guard.loss(step))
    assert "guard" in step.terms and "guard" not in without.terms


@pytest.mark.parametrize("method", ["replay", "finetune", "lwf"])
def test_learning_leaves_the_answers_on_what_is_gone_as_they_were(method, tmp_path):
    moved = {}
    for guard in ("none", "data"):
        t = trainer(pretrained(4), PLAN, method, tmp_path / guard, guard=guard, guard_weight=3.0)
        with torch.no_grad():
            t.model.head.bias[0] -= 40  # c0 is forgotten
        t._begin(SECOND, 0)
        gone = t.domain._batch([("c0", i) for i in range(16)], [None] * 16, True)
        with torch.no_grad():
            before = t.domain.predict(t.model.eval(), gone).scores
        for number in range(40):
            t._step(Position(SECOND, number, 40), t._batches(SECOND, number), 1e-2)
        with torch.no_grad():
            moved[guard] = masked_kl(t.domain.predict(t.model.eval(), gone).scores, before, [0, 4]).item()
    assert moved["data"] < moved["none"] / 3


# ---- subspace --------------------------------------------------------------------------------------------


def test_directions_are_the_fewest_that_hold_the_energy():
    x = torch.randn(50, 8, dtype=torch.double) * torch.tensor([9.0, 5, 3, 1, 0.5, 0.1, 0.1, 0.1])
    for energy in (0.5, 0.9, 0.99, 1.0):
        basis = subspace.top(x.T @ x, energy)
        count = basis.shape[1]
        torch.testing.assert_close(basis.T @ basis, torch.eye(count, dtype=torch.double))
        held = [(x @ basis[:, :k]).square().sum() / x.square().sum() for k in (count, count - 1)]
        assert held[0] >= energy - 1e-9 and held[1] < energy


def test_an_adapted_layer_answers_forgotten_inputs_as_before(tmp_path):
    settings = {"guard": "subspace", "guard_energy": 0.9, "steps": 12, "batch_size": 16, "lr": 2e-2, "lora_rank": 4}
    t = trainer(pretrained(4), PLAN, "replay", tmp_path, **settings)
    trained(t, PLAN.phases[0])
    (space,) = t.guard.spaces
    assert space["classes"] == ["c0"] and set(space["layers"]) == set(lora.adapters(t.model))
    inputs = {name: torch.randn(5, u.shape[1]) @ u.T for name, u in space["layers"].items()}
    others = {name: torch.randn(5, u.shape[0]) for name, u in space["layers"].items()}
    answers = lambda xs: {n: lora.adapters(t.model)[n](x).detach() for n, x in xs.items()}  # noqa: E731
    before, elsewhere = answers(inputs), answers(others)
    trained(t, SECOND)
    for name, after in answers(inputs).items():
        torch.testing.assert_close(after, before[name], atol=1e-5, rtol=1e-5)
    assert any((after - elsewhere[name]).abs().max() > 1e-2 for name, after in answers(others).items())


def test_without_the_guard_the_same_layers_answer_otherwise(tmp_path):
    t = trainer(pretrained(4), PLAN, "replay", tmp_path, guard="none", steps=12, batch_size=16, lr=2e-2, lora_rank=4)
    trained(t, PLAN.phases[0])
    spaces = subspace.directions(t.model.eval(), t.domain, t.method.pass_over(["c0"]), 0.9)
    inputs = {name: torch.randn(5, u.shape[1]) @ u.T for name, u in spaces.items()}
    before = {n: lora.adapters(t.model)[n](x).detach() for n, x in inputs.items()}
    trained(t, SECOND)
    assert any((lora.adapters(t.model)[n](x) - before[n]).abs().max() > 1e-2 for n, x in inputs.items())


def test_the_directions_lie_beside_the_adapter_and_their_size_is_told(tmp_path):
    t = trainer(pretrained(4), PLAN, "replay", tmp_path, guard="subspace", steps=2)
    t.swap()
    saved = load_file(tmp_path / "adapter" / subspace.FILE)
    assert set(saved) == {f"0.{name}" for name in lora.adapters(t.model)}
    told = [line["guard"] for line in read_lines(tmp_path / METRICS) if "guard" in line]
    size = {"directions": sum(u.shape[1] for u in saved.values()), "bytes": sum(4 * u.numel() for u in saved.values())}
    assert told == [{"stored": size}, {"kind": "subspace", "classes": ["c0"], "stored": size}]


class Tokens:
    """A domain whose batches are the inputs of the model's one layer."""

    def predict(self, model, batch):
        return model(batch)


def test_the_background_that_other_pictures_share_stays_free():
    """Directions that pictures without the forgotten class have as much of per token are left to later phases."""
    background, own, theirs = torch.linalg.qr(torch.randn(12, 3)).Q.T
    model = nn.Sequential(nn.Linear(12, 4))
    lora.inject(model, ["0"], 2)
    ground = 5 * background * torch.randn(40, 1)  # most tokens of every picture
    with_it = torch.stack([*ground, *(own * torch.randn(10, 1)), *(theirs * torch.randn(10, 1))])
    without = torch.stack([*ground, *(theirs * torch.randn(20, 1))])
    whole = subspace.directions(model, Tokens(), [with_it], 0.95)["0"]
    held = subspace.directions(model, Tokens(), [with_it], 0.95, [without])["0"]
    assert (whole.T @ background).norm() > 0.99 and (whole.T @ own).norm() < 0.1  # the object is too small to be seen
    assert (held.T @ background).norm() < 0.1 and (held.T @ own).norm() > 0.99


@pytest.mark.parametrize("kept", [REST, ()])
def test_what_is_forgotten_is_compared_with_as_much_of_what_is_kept(kept, tmp_path, monkeypatch):
    domain, seen = pretrained(4), []
    t = trainer(domain, PLAN, "replay", tmp_path, guard="subspace")
    take = lambda *args: seen.append([{n[:2] for n in b.names} for b in args[4]]) or {}  # noqa: E731
    monkeypatch.setattr(subspace, "directions", take)
    t.guard.end_phase(replace(PLAN.phases[0], keep=kept))
    (others,) = seen
    assert sum(map(len, others)) > 0 and set.union(*others) <= set(kept) if kept else others == []


# ---- the next run ----------------------------------------------------------------------------------------


def first_run(folder):
    """A run that has forgotten c0, and the domain of its successor."""
    t = trainer(pretrained(4), make_plan("forget", [], ["c0"], REST), "replay", folder, guard="subspace", steps=2)
    t.swap()
    domain = pretrained(4)
    domain.base = merge(t.model)
    return t, domain


def next_run(domain, folder, before, plan, **settings):
    """Its successor, which starts from the folder of the first."""
    flags = {"method": "replay", "device": "cpu", "precision": "fp32", "lora_rank": 2, "gallery": 0, "steps": 12}
    flags |= {"batch_size": 8, "lr": 1e-2, "checkpoint": str(before), **settings}
    return Trainer(domain, plan, settings_from((), flags), Run(folder))


AGAIN = replace(make_plan("learn", ["c4"], [], REST), gone=("c0",))


@pytest.mark.parametrize("guard", ["auto", "subspace"])
def test_a_run_that_starts_from_another_holds_what_that_one_forgot(guard, tmp_path):
    first, domain = first_run(tmp_path / "first")
    t = next_run(domain, tmp_path / guard, tmp_path / "first", AGAIN, guard=guard)
    (space,) = t.guard.earlier
    inputs = {name: torch.randn(5, u.shape[1]) @ u.T for name, u in space["layers"].items()}
    t.swap()
    for name, layer in lora.adapters(t.model).items():
        torch.testing.assert_close(
            layer.low_rank(inputs[name]), torch.zeros(5, layer.lora_B.shape[0]), atol=1e-5, rtol=0
        )
    assert any(layer.lora_B.abs().max() > 1e-3 for layer in lora.adapters(t.model).values())
    told = [line["guard"] for line in read_lines(tmp_path / guard / METRICS) if "guard" in line]
    assert told == [{"earlier": ["c0"], "stored": subspace.sizes(first.guard.spaces)}]
    passed_on = load_file(tmp_path / guard / "adapter" / subspace.FILE)
    assert {name: u.tolist() for name, u in passed_on.items()} == {
        f"0.{name}": u.tolist() for name, u in space["layers"].items()
    }


def test_what_is_learned_again_is_held_no_longer_and_none_holds_nothing(tmp_path, capsys):
    _, domain = first_run(tmp_path / "first")
    relearned = replace(make_plan("learn", ["c0"], [], REST), gone=("c0",))
    assert relearned.forgotten == () and AGAIN.forgotten == ("c0",)
    assert next_run(domain, tmp_path / "a", tmp_path / "first", relearned).guard.earlier == []
    assert next_run(domain, tmp_path / "b", tmp_path / "first", AGAIN, guard="none").guard.earlier == []
    capsys.readouterr()
    assert next_run(domain, tmp_path / "c", tmp_path / "nowhere", AGAIN, guard="subspace").guard.earlier == []
    assert "no directions of what it forgot" in capsys.readouterr().out


def test_directions_that_are_damaged_or_of_other_layers_are_refused(tmp_path):
    first, domain = first_run(tmp_path / "first")
    file = tmp_path / "first" / "adapter" / subspace.FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="guard.safetensors is damaged"):
        next_run(domain, tmp_path / "a", tmp_path / "first", AGAIN)
    first.guard.spaces[0]["layers"].popitem()
    first.guard.save(tmp_path / "first" / "adapter")
    with pytest.raises(UserError, match="no directions for layer.*--lora-position"):
        next_run(domain, tmp_path / "b", tmp_path / "first", AGAIN)


def test_a_plan_on_a_base_that_has_forgotten_neither_retains_nor_reads_what_is_gone():
    base = ["a", "b", "c"]
    plan = plan_from(PlanConfig(forget="b"), base, [], ("a",))
    assert plan.groups == {"forget": ("b",), "retain": ("c",)} and plan.gone == ("a",)
    assert plan.forgotten == ("a", "b") and from_record(plan.record()) == plan
    assert plan_from(PlanConfig(learn="a"), base, [], ("a",)).forgotten == ()
    with pytest.raises(UserError, match="--retain.*has forgotten class 'a'"):
        plan_from(PlanConfig(forget="b", retain="a,c"), base, [], ("a",))


def test_a_session_reads_what_a_run_has_forgotten(tmp_path, capsys):
    first_run(tmp_path / "first")
    assert Session().gone({"checkpoint": str(tmp_path / "first")}) == ("c0",)
    assert "neither retained nor trained on: c0" in capsys.readouterr().out
    assert Session().gone({"checkpoint": str(tmp_path)}) == Session().gone({}) == ()
