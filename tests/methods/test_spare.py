"""Items beyond the bound are left out of the backward pass: the gradient is that of the whole batch."""

import pytest
import torch
from colours import domain, spec
from ks_classification.models import build, layers
from toy import make_trainer

from common.methods._base import Position, Step
from common.plan import make_plan
from common.streams import Stream

NAMES = ["red", "green", "blue", "yellow"]
PLAN = make_plan("forget", [], ["red", "green"], ["blue", "yellow"])


def made(tmp_path, method="gs_lora", dropout=0.0, **settings):
    base = build.build(spec(NAMES))
    layers.set_dropout(base, dropout)
    own = domain(PLAN.groups, names=NAMES, base=base)
    trainer = make_trainer(own, PLAN, method, tmp_path, batch_size=8, **settings)
    trainer._begin(PLAN.phases[0], 0)
    for parameter in trainer.parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    target, keep = (
        next(iter(own.loader(c, train=True, stream=Stream(1, 8)))) for c in (PLAN.phases[0].target, PLAN.phases[0].keep)
    )
    return trainer, Step(Position(PLAN.phases[0], 0, 9, 9), target, keep)


def gradient(trainer, step, active):
    trainer.method.active = active
    trainer._train_mode()
    trainer.model.zero_grad()
    loss = trainer.method.loss(step)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in trainer.parameters]


@pytest.mark.parametrize("method", ["gs_lora", "replay"])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 1.1])
def test_the_gradient_is_that_of_the_whole_batch(tmp_path, method, quantile):
    trainer, step = made(tmp_path, method)
    losses = trainer.domain.predict(trainer.model, step.target).item_loss.detach()
    trainer.method.config.bound = losses.quantile(min(quantile, 1.0)).item() + (quantile > 1)
    whole, slopes = gradient(trainer, step, 1.0)
    assert trainer.method.active == pytest.approx((losses < trainer.method.config.bound).float().mean().item())
    spared, others = gradient(trainer, step, 0.0)
    assert whole == pytest.approx(spared, rel=1e-5)
    for a, b in zip(slopes, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert step.terms["spared"].item() == pytest.approx(1 - trainer.method.active)


def test_a_class_that_is_gone_costs_no_backward_pass(tmp_path, monkeypatch):
    trainer, step = made(tmp_path)
    trainer.method.config.bound, sizes = 1e-9, []
    predict = trainer.domain.predict_together

    def counted(model, batches, read):
        sizes.append((torch.is_grad_enabled(), sum(len(b.labels) for b in batches)))
        return predict(model, batches, read)

    monkeypatch.setattr(trainer.domain, "predict_together", counted)
    gradient(trainer, step, 0.0)
    assert sizes == [(False, 8), (True, 8)]


@pytest.mark.parametrize(
    ("method", "dropout"), [("gs_lora", 0.5), ("gs_lora_pp", 0.0), ("mask_replay", 0.0), ("finetune", 0.0)]
)
def test_what_would_change_the_gradient_is_not_spared(tmp_path, method, dropout):
    """Dropout draws anew in a second pass; other methods read more of the target than its bounded loss."""
    trainer, step = made(tmp_path, method, dropout)
    gradient(trainer, step, 0.0)
    assert "spared" not in step.terms


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("gs_lora", ["items", "loss"]),
        ("mask_replay", ["both", "both"]),  # its answers take the place of the bound; kept items may be read
        ("gs_lora_pp", ["both", "both"]),  # does not say that it reads nothing else
    ],
)
def test_a_forget_phase_asks_for_the_losses_that_it_reads(tmp_path, monkeypatch, method, read):
    trainer, step = made(tmp_path, method)
    predict, asked = trainer.domain.predict_together, []

    def listening(model, batches, read=()):
        if torch.is_grad_enabled():
            asked.append(list(read))
        return predict(model, batches, read)

    monkeypatch.setattr(trainer.domain, "predict_together", listening)
    gradient(trainer, step, 1.0)
    assert asked == [read]
