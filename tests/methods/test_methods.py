"""Every method in the folder, with every order, and on every toy domain: a new file is tested the day it appears."""

import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from toy import DOMAINS, NEW, make_trainer, pretrain, swap_plan

from common import adapters, lora, methods
from common.errors import UserError
from common.methods.amnesiac import LEARNERS
from common.plan import ORDERS
from common.record import METRICS, STEPS, read_lines

METHODS = [*methods.available(), *(f"amnesiac {name}" for name in LEARNERS if name != "none")]
TINY = {"steps": 2, "batch_size": 4, "gallery": 0, "lr": 1e-2}
BASES = {}


def domain_of(kind):
    """A toy domain with very little data, on a random base that is the same every time."""
    if kind not in BASES:
        torch.manual_seed(0)
        BASES[kind] = DOMAINS[kind]().make_model()
    return DOMAINS[kind](BASES[kind], per_class=3)


def trainer_of(kind, method, order, folder, **settings):
    method, *learner = method.split()
    settings |= {"learner": learner[0]} if learner else {}
    return make_trainer(domain_of(kind), swap_plan(order), method, folder, **{**TINY, **settings})


def warned_of(method, order):
    """Amnesiac methods take back what a phase of the plan learned, and say that none learned the classes to forget."""
    if method.startswith("amnesiac") and method != "amnesiac_batch" and "f" in order:
        return pytest.warns(UserWarning, match="no recorded update of forget")
    return nullcontext()


# a plan of one or two phases is the beginning of a longer one: in one domain
CASES = [
    (method, order, kind)
    for method in METHODS
    for order, actions in ORDERS.items()
    for kind in (DOMAINS if len(actions) > 2 else ["classification"])
]


@pytest.mark.parametrize(("method", "order", "kind"), CASES)
def test_contract(method, order, kind, tmp_path):
    """No method refuses an order: a UserError of any of them fails here."""
    trainer = trainer_of(kind, method, order, tmp_path)
    with warned_of(method, order):
        trainer.swap()
    plan = trainer.plan
    scores = [m for m in read_lines(tmp_path / METRICS) if "score" in m]
    ends = [(m["phase"], m["group"]) for m in scores]
    assert ends == [(phase, group) for phase in range(len(plan.phases) + 1) for group in plan.groups]
    assert all(0 <= m["score"] <= 100 and set(m["per_class"]) == set(plan.groups[m["group"]]) for m in scores)
    assert all(math.isfinite(line["loss"]) for line in read_lines(tmp_path / STEPS))
    base = BASES[kind].state_dict()
    state = trainer.model.state_dict()
    if lora.adapters(trainer.model):
        rows = trainer.domain.head_rows(trainer.model, NEW)
        for name, value in base.items():
            kept = [r for r in range(len(value)) if r not in rows[name]] if name in rows else ...
            assert torch.equal(state[name][kept], value[kept]), f"{name} of the base was written to"
        again = trainer.domain.build_model()
        adapters.load(again, tmp_path / "adapter")
    else:
        again = trainer.domain.build_model()
        adapters.load_model(again, tmp_path / "model")
    again.eval()
    trainer.model.eval()
    batch = next(iter(trainer.domain.loader(NEW, train=False)))
    with torch.inference_mode():  # with gradients, torch multiplies frozen weights in another order
        expected, _ = trainer.domain.answers(trainer.model, batch)
        found, _ = trainer.domain.answers(again, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.filterwarnings("ignore:no recorded update of forget")
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_of_any_method_ends_as_an_undisturbed_one(method, tmp_path, monkeypatch):
    settings = {"steps": 3, "save_every": 0}
    whole = trainer_of("classification", method, "lfl", tmp_path / "whole", **settings)
    expected, kills = whole.swap(), (2, 4, 8)  # the middle of the first phase, of the second and of the third
    killed = 0
    for at in kills:
        trainer = trainer_of("classification", method, "lfl", tmp_path / "killed", **settings)
        count, step = read_lines(tmp_path / "killed" / STEPS), type(trainer)._set_lr
        left = [at - len(count)]

        def dies(self, *args, left=left, step=step):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return step(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(type(trainer), "_set_lr", dies)
            try:
                trainer.swap()
            except Killed:
                killed += 1
    trainer = trainer_of("classification", method, "lfl", tmp_path / "killed", **settings)
    assert trainer.swap() == expected
    steps = len(read_lines(tmp_path / "whole" / STEPS))
    assert killed == sum(at < steps for at in kills) >= 2, "a method may make a phase shorter"
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


@pytest.mark.parametrize("kind", DOMAINS)
def test_the_main_method_learns_forgets_and_retains(kind, tmp_path):
    base = pretrain(kind, tmp_path / "base")
    trainer = make_trainer(
        DOMAINS[kind](base), swap_plan(), "gs_lora", tmp_path / "swap", steps=60, batch_size=16, lora_rank=4
    )
    last = {m["group"]: m["score"] for m in trainer.swap() if "score" in m}
    assert last["learn"] >= 90 and last["forget"] <= 10 and last["retain"] >= 90, last


@pytest.mark.parametrize(("method", "settings"), [("replay", {}), ("gs_lora", {"sparsity_from_epoch": 10})])
def test_forgetting_starts_from_a_saturated_classifier(method, settings, tmp_path):
    """There the gradient of the target loss is nearly zero, and a group lasso that is stronger than it holds the
    fresh adapter at zero (its optimality condition): it needs a later start."""
    domain = DOMAINS["classification"](pretrain("classification", tmp_path / "base"))
    plan, folder = swap_plan("forget"), tmp_path / "swap"
    make_trainer(domain, plan, method, folder, steps=60, batch_size=16, **settings).swap()
    lines = read_lines(folder / STEPS)
    assert lines[-1]["target"] > lines[0]["target"] + 1


def test_a_group_lasso_that_holds_forgetting_back_is_named(tmp_path):
    domain = DOMAINS["classification"](pretrain("classification", tmp_path / "base"))
    held = make_trainer(domain, swap_plan("forget"), "gs_lora", tmp_path / "held", steps=30, batch_size=16)
    with pytest.warns(UserWarning, match="--sparsity-from-epoch"):
        held.swap()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        free = {"steps": 60, "batch_size": 16, "sparsity_from_epoch": 10}
        make_trainer(domain, swap_plan("forget"), "gs_lora", tmp_path / "free", **free).swap()


def test_files_with_an_underscore_are_no_methods():
    assert "gs_lora" in methods.available() and not [m for m in methods.available() if m.startswith("_")]
    with pytest.raises(UserError, match="`--method` must be one of .*gs_lora"):
        methods.load("_base")
