"""The loop: what trains and what stays, records, interrupts, losses that are no numbers."""

import signal
from itertools import pairwise

import pytest
import torch
from toy import BASE, DOMAINS, NEW, ToyClassification, make_trainer, swap_plan

from common import cli
from common.errors import Interrupted, UserError
from common.lora import adapters
from common.plan import Plan, make_plan
from common.record import DETAILS, METRICS, STEPS, read_lines
from common.schema import read_json


def base_of(kind):
    torch.manual_seed(0)
    return DOMAINS[kind]().make_model()


def trainer_of(folder, kind="classification", method="gs_lora", plan=None, **settings):
    settings = {"steps": 4, "batch_size": 4, "gallery": 0, **settings}
    domain = settings.pop("domain", None) or DOMAINS[kind](base_of(kind), per_class=4)
    return make_trainer(domain, plan or swap_plan(), method, folder, **settings)


def test_frozen_weights_and_the_base_are_one_memory_that_no_step_writes_to(tmp_path):
    trainer = trainer_of(tmp_path, weight_decay=0.5)
    base, own = trainer.domain.base, dict(trainer.model.named_parameters())
    before = {name: p.clone() for name, p in base.named_parameters()}
    written = {name for name, p in own.items() if p.requires_grad} | set(trainer.domain.head_rows(trainer.model, BASE))
    trainer.swap()
    for name, p in base.named_parameters():
        assert torch.equal(p, before[name])
        assert (p.data_ptr() == own[name].data_ptr()) == (name not in written)


def test_a_method_that_trains_everything_shares_nothing_with_the_base(tmp_path):
    trainer = trainer_of(tmp_path, method="neg_grad_plus")
    own = {p.data_ptr() for p in trainer.model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in trainer.domain.base.parameters())


@pytest.mark.parametrize("kind", DOMAINS)
def test_the_base_and_the_other_head_rows_stay_bit_for_bit(kind, tmp_path):
    """Under AdamW with weight decay; running statistics of the base are part of it."""
    trainer = trainer_of(tmp_path, kind, weight_decay=0.5, lora_position="all", steps=6)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    rows = trainer.domain.head_rows(trainer.model, NEW)
    trainer.swap()
    for name, value in trainer.model.state_dict().items():
        if "lora_" in name or "past_" in name:
            continue
        trained = rows.get(name, [])
        kept = [r for r in range(len(value)) if r not in trained] if value.dim() else ...
        assert torch.equal(value[kept], before[name][kept]), name
        if trained:
            assert not torch.isclose(value[trained], before[name][trained]).all()


def test_published_head_rows_stay_frozen_too(tmp_path):
    trainer = trainer_of(tmp_path, train_head_rows=False)
    head = trainer.model.head.weight.clone()
    trainer.swap()
    assert torch.equal(trainer.model.head.weight, head)
    assert trainer.rows is not None and trainer.rows.count() == 0


def test_what_is_recorded_as_trainable_is_what_trains(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.swap()
    factors = sum(f.numel() for layer in adapters(trainer.model).values() for f in layer.live())
    recorded = read_json(tmp_path / "config.json")["parameters"]
    assert recorded["trainable"] == factors + 2 * (trainer.model.head.in_features + 1)
    assert recorded["total"] == sum(p.numel() for p in base_of("classification").parameters())


def test_a_run_is_a_function_of_its_seed(tmp_path):
    lines = [trainer_of(tmp_path / str(i), domain=None, seed=s).swap() for i, s in enumerate((0, 0, 1))]
    assert lines[0] == lines[1] != lines[2]


def test_every_phase_is_scored_before_and_after_on_every_group(tmp_path):
    trainer = trainer_of(tmp_path, plan=swap_plan("lfl"), epochs=2, steps=0, eval_every=1)
    metrics = trainer.swap()
    assert metrics == read_lines(tmp_path / METRICS)
    moments = [(m["phase"], m["epoch"]) for m in metrics if m.get("group") == "retain"]
    assert moments == [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
    steps = read_lines(tmp_path / STEPS)
    per_epoch = -(-24 // 4)  # four items of the four retained classes and of the two that the next phase forgets
    assert [s["step"] for s in steps if s["phase"] == 1] == list(range(2 * per_epoch))
    assert {s["epoch"] for s in steps} == {0, 1}


def test_the_adapters_way_is_recorded_per_block(tmp_path):
    metrics = trainer_of(tmp_path).swap()
    lines = [m for m in metrics if "adapter_moved" in m]
    assert [m["phase"] for m in lines] == [1, 2]
    for line in lines:
        assert set(line["adapter_moved"]) == set(line["adapter_norm"]) == {"blocks.0", "blocks.1"}
        assert all(v > 0 for v in line["adapter_moved"].values()) and line["zero_groups"] == 0


def test_the_recorded_way_is_the_norm_of_the_change(tmp_path):
    trainer = trainer_of(tmp_path, plan=swap_plan("learn"))
    trainer.swap()
    line = next(m for m in trainer.observer.metrics if "adapter_moved" in m)
    for block, moved in line["adapter_moved"].items():
        deltas = [layer.delta().detach() for name, layer in adapters(trainer.model).items() if name.startswith(block)]
        assert moved == pytest.approx(float(sum(d.pow(2).sum() for d in deltas) ** 0.5), rel=1e-4)


def test_proximal_steps_make_whole_blocks_zero(tmp_path):
    metrics = trainer_of(tmp_path, proximal=True, sparsity_weight=50.0).swap()
    assert [m["zero_groups"] for m in metrics if "zero_groups" in m] == [1.0, 1.0]


def test_stacked_adapters_freeze_the_phases_before(tmp_path):
    trainer = trainer_of(tmp_path, plan=swap_plan("flf"), lora_between_phases="stack")
    trainer.swap()
    ranks = {tuple(layer.past_A.shape)[0] for layer in adapters(trainer.model).values()}
    assert ranks == {4}  # two phases of rank 2 below the live one


@pytest.mark.parametrize("kind", DOMAINS)
def test_a_phase_ends_with_the_average_of_its_steps(kind, tmp_path):
    trainer = trainer_of(tmp_path, kind, plan=swap_plan("learn"), average_decay=0.5, steps=5)
    update, seen = trainer.average.update, []

    def watched():
        seen.append([p.detach().clone() for p in trainer.parameters])
        update()

    trainer.average.update = watched
    trainer.swap()
    expected = seen[0]
    for n, now in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, now, strict=True)]
    torch.testing.assert_close([p.detach() for p in trainer.parameters], expected)
    assert len(seen) == 5 and any(not torch.equal(a, b) for a, b in zip(expected, seen[-1], strict=True))


def test_a_run_that_averages_over_nothing_is_the_run_that_does_not_average(tmp_path):
    plain, averaged = (trainer_of(tmp_path / str(decay), average_decay=decay, eval_every=1) for decay in (0.0, 1e-12))
    assert plain.swap() == averaged.swap()
    for name, value in averaged.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name]), name
    assert "average_decay" not in read_json(tmp_path / "0.0" / "config.json")["identity"]["train"]


def test_forget_phases_may_have_a_length_of_their_own(tmp_path):
    trainer_of(tmp_path, plan=swap_plan("flf"), forget_steps=2).swap()
    lengths = [sum(line["phase"] == phase for line in read_lines(tmp_path / STEPS)) for phase in (1, 2, 3)]
    assert lengths == [2, 4, 2]


@pytest.mark.parametrize("carry", [False, True])
def test_adams_moments_are_carried_only_when_asked(carry, tmp_path):
    trainer = trainer_of(tmp_path, carry_optimizer=carry)
    trainer.swap()
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == ({8} if carry else {4})


def test_the_learning_rate_follows_the_schedule(tmp_path):
    trainer_of(tmp_path, lr=0.1, min_lr=0.01, warmup=0.5, steps=8).swap()
    rates = [s["lr"] for s in read_lines(tmp_path / STEPS) if s["phase"] == 1]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1]) and all(a > b for a, b in pairwise(rates[4:]))


def test_clipping_bounds_the_step_but_records_the_true_norm(tmp_path):
    norms = {}
    for clip in (0.0, 1e-3):
        trainer_of(tmp_path / str(clip), clip=clip, plan=swap_plan("learn"), steps=1).swap()
        norms[clip] = read_lines(tmp_path / str(clip) / STEPS)[0]["grad_norm"]
    assert norms[0.0] == norms[1e-3] > 1e-3


def test_a_phase_that_keeps_nothing_trains_on_its_target_alone(tmp_path):
    plan = Plan("alone", {"new": NEW}, (("learn", ("new",)),))
    metrics = trainer_of(tmp_path, plan=plan).swap()
    assert {m["group"] for m in metrics if "score" in m} == {"new"}
    assert "keep" not in read_lines(tmp_path / STEPS)[0]


def test_bf16_runs_and_records_its_format(tmp_path):
    trainer_of(tmp_path, precision="bf16").swap()
    assert read_json(tmp_path / "config.json")["precision"] == "bf16"


# ---- what stops a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DOMAINS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_no_number_names_phase_step_and_files(kind, accumulate, tmp_path, capsys):
    poison = "n0_1.png"
    domain = DOMAINS[kind](base_of(kind), per_class=4, poison=poison)

    def body(argv):
        trainer_of(tmp_path, domain=domain, plan=swap_plan("fftl"), accumulate=accumulate, save_every=0).swap()

    assert cli.main(body, []) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("phase ")]
    assert len(errors) == 1
    assert "the loss is nan in phase 2 learn, step" in errors[0] and poison in errors[0]
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["done"]["phase"] == 2 and all(v.isfinite().all() for v in state["model"].values())
    assert {m["phase"] for m in read_lines(tmp_path / METRICS)} == {0, 1}
    assert (tmp_path / "adapter" / "swap.json").exists()


def test_a_gradient_that_is_no_number_stops_before_the_weights_are_spoiled(tmp_path):
    class Spoiled(ToyClassification):
        def predict_together(self, model, batches, read=()):
            first, *rest = super().predict_together(model, batches, read)
            spoil = (first.scores - first.scores.detach()).abs().sum().sqrt()  # value 0, gradient infinite
            return [first._replace(loss=first.loss + spoil), *rest]

    trainer = trainer_of(tmp_path, domain=Spoiled(base_of("classification"), per_class=4))
    with pytest.raises(UserError, match="the gradient is nan in phase 1 learn, step 1"):
        trainer.swap()
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_an_interrupt_ends_the_run_after_the_step_and_it_goes_on(tmp_path, monkeypatch):
    whole = trainer_of(tmp_path / "whole").swap()
    trainer = trainer_of(tmp_path / "stopped")
    handler = signal.getsignal(signal.SIGINT)  # a shell's background job ignores Ctrl-C from the start
    predict = trainer.domain.predict_together

    def interrupted(model, batches, read=()):
        if torch.is_grad_enabled() and not trainer.stop.asked:
            signal.raise_signal(signal.SIGINT)
        return predict(model, batches, read)

    monkeypatch.setattr(trainer.domain, "predict_together", interrupted)
    with pytest.raises(Interrupted, match="stopped after phase 1 learn, step 1 of 4; the same command goes on"):
        trainer.swap()
    assert len(read_lines(tmp_path / "stopped" / STEPS)) == 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert trainer_of(tmp_path / "stopped").swap() == whole


def test_nothing_to_train_is_an_error(tmp_path):
    class Bare(ToyClassification):
        def lora_targets(self, model):
            return {"ffn": []}

    with pytest.raises(UserError, match="no layers at `--lora-position ffn`"):
        trainer_of(tmp_path, domain=Bare(base_of("classification")))


def test_classes_without_training_items_are_named(tmp_path):
    domain = ToyClassification(base_of("classification"), per_class=4)
    domain.items[True] = [item for item in domain.items[True] if not item.name.startswith("n")]
    with pytest.raises(UserError, match="no training items of n0, n1, which phase 1 learn needs"):
        trainer_of(tmp_path, domain=domain).swap()


def test_rank_larger_than_a_layer_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="`--lora-rank` must be between 1 and 16"):
        trainer_of(tmp_path / "run", lora_rank=99)
    assert not (tmp_path / "run").exists()


def test_a_retrained_model_never_sees_what_is_forgotten(tmp_path):
    seen = []

    class Watched(ToyClassification):
        def predict_together(self, model, batches, read=()):
            if torch.is_grad_enabled():
                seen.extend(name for batch in batches for name in batch.names)
            return super().predict_together(model, batches, read)

    plan = make_plan("forget", (), BASE[:2], BASE[2:])
    trainer_of(tmp_path, method="retrain", domain=Watched(base_of("classification"), per_class=4), plan=plan).swap()
    assert seen and not [name for name in seen if name.startswith(("c0", "c1"))]


def test_figures_and_curves_of_a_domain_are_kept_at_every_phase_end(tmp_path):
    trainer = trainer_of(tmp_path, epochs=2, steps=0, eval_every=1)
    plain = trainer.domain.evaluate_groups

    def told(model, groups):
        return {
            group: found._replace(figures={"twice": {"total": 2 * found.scores["total"]}}, curves={"c0": [1.0, 1 / 3]})
            for group, found in plain(model, groups).items()
        }

    trainer.domain.evaluate_groups, trainer.domain.curve_axes = told, ("recall", "precision")
    metrics = trainer.swap()
    kept = read_json(tmp_path / DETAILS)
    assert set(kept) == {"axes", "0", "1", "2"} and kept["axes"] == ["recall", "precision"]
    for line in metrics:
        if "score" in line and line["end"]:
            own = kept[str(line["phase"])][line["group"]]
            assert own == {
                "figures": {"twice": {"total": 2 * line["score"]}},
                "curves": {"c0": [1.0, 0.3333]},
                "answers": {},
            }


def test_a_domain_with_nothing_more_to_tell_leaves_no_details(tmp_path):
    trainer_of(tmp_path).swap()
    assert not (tmp_path / DETAILS).exists()


def test_forget_phases_may_have_a_learning_rate_of_their_own(tmp_path):
    trainer_of(tmp_path, plan=swap_plan("flf"), forget_lr=5e-4, lr=2e-3, warmup=0.25).swap()
    peaks = [max(line["lr"] for line in read_lines(tmp_path / STEPS) if line["phase"] == phase) for phase in (1, 2, 3)]
    assert peaks == pytest.approx([5e-4, 2e-3, 5e-4])
