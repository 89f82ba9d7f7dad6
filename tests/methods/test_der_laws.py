"""DER: which logits are matched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from blobs import REST, begun, predictions, pretrained, step_of, trainer

from common.errors import UserError
from common.plan import Plan, make_plan


def test_der_matches_logits_and_the_published_variant_embeddings(tmp_path):
    t, phase = begun("der", tmp_path / "a", trains="all")
    step = step_of(t, phase)
    with torch.no_grad():
        t.model.head.bias += 1
    t.model.eval()
    shifted = t.method.retention(step, *predictions(t, step)).item()
    assert shifted == pytest.approx(t.method.config.logit_weight, rel=1e-4)  # every logit moved by 1, mean square 1
    t, phase = begun("der", tmp_path / "b", trains="all", published_embeddings=True)
    with torch.no_grad():
        t.model.head.bias += 1
    t.model.eval()
    assert t.method.retention(step, *predictions(t, step)).item() == 0


def test_der_stores_the_logits_that_an_item_entered_the_memory_with(tmp_path):
    plan = Plan("two", {"a": ("c4",), "b": ("c5",), "r": REST}, (("learn", ("a",)), ("learn", ("b",))))
    t = trainer(pretrained(4), plan, "der", tmp_path, trains="all", exemplars=3, teacher="stored")
    first, second = plan.phases
    t._begin(first, 0)
    entered = {name: scores.clone() for name, scores in t.method.memory.logits.items()}
    assert len(entered) == 3 * len(REST) and t.method.teacher is None
    with torch.no_grad():
        t.model.head.bias += 1  # what the phase learns
    t.model.eval()
    t.method.end_phase(first)
    t._begin(second, 0)
    stored = t.method.memory.logits
    assert len(stored) == 3 * (len(REST) + 1) and all(torch.equal(stored[name], entered[name]) for name in entered)
    step = step_of(t, second)
    items = [(c, int(i)) for c, _, i in (name.partition("/") for name in step.keep.names)]
    step.keep = t.domain._batch(items, [None] * len(items), True)  # as they were when they entered
    labels = [t.domain.classes.names[row] for row in step.keep.labels.tolist()]
    old = torch.tensor([c in REST for c in labels])
    target, keep = predictions(t, step)
    wanted = keep.scores.detach() - old[:, None].float()  # old items moved by 1 since they entered, c4 not at all
    expected = t.method.config.logit_weight * F.mse_loss(keep.scores, wanted)
    torch.testing.assert_close(t.method.retention(step, target, keep), expected, rtol=1e-4, atol=1e-6)
    t.method.memory.forget(["c1"])
    assert not [name for name in t.method.memory.logits if name.startswith("c1")]


@pytest.mark.parametrize("settings", [{}, {"exemplars": 3, "published_embeddings": True}])
def test_der_refuses_stored_logits_where_it_has_none(settings, tmp_path):
    with pytest.raises(UserError, match="--teacher stored.*--exemplars 200"):
        trainer(pretrained(4), make_plan("forget", [], ["c0"], REST), "der", tmp_path, teacher="stored", **settings)
