"""A picture that shows several classes goes through the model once, and gives the numbers of a pass for every class."""

import numpy as np
import pytest
import tiny_domains
import tiny_swap
import torch
from ks_segmentation.models.parts import criterion

from common.evaluation import answers
from common.evaluation.attacks import relearn


def detection():
    return tiny_swap.domain(), ["b", "a", "c"]


def segmentation():
    return tiny_domains.segmentation()[0], ["1", "3", "4"]


@pytest.fixture(params=[detection, segmentation], ids=["detection", "segmentation"])
def case(request, monkeypatch):
    """(domain, model, classes, what went through the model); matchings of segments look at one set of points."""
    points = torch.rand(1, 4096, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        criterion, "random_points", lambda count, number, device: points[:, :number].expand(count, -1, -1)
    )
    domain, classes = request.param()
    torch.manual_seed(0)
    model, seen = domain.build_model().eval(), []
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    return domain, model, classes, seen


@torch.inference_mode()
def separate(domain, model, name):
    """(logits, embedding, covers) of a class's test items, by passes of its own."""
    parts = []
    for batch in domain.loader([name], train=False):
        found = domain.predict(model, batch)
        parts.append((found.scores, found.embedding, domain.located(model, batch, domain.outputs_of(model, batch))))
    return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]


def test_one_pass_gives_the_numbers_of_separate_passes(case):
    domain, model, classes, _ = case
    part = answers.collect(domain, model, classes, [], 10**6, 4, len(classes)).test
    for label, name in enumerate(classes):
        logits, embedding, covers = separate(domain, model, name)
        own, located = part.labels == label, part.located[part.located[:, 0] == label]
        order = domain.classes.rows(classes)
        assert np.allclose(part.logits[own][:, : len(order)], logits[:, order], atol=1e-5)
        assert np.allclose(part.features["embedding"][own], embedding, atol=1e-5)
        assert np.allclose(located[:, 1:3], covers[:, :2], atol=1e-5)
    assert np.array_equal(relearn.hits(domain, model, classes, 10**6, 4), part.located[:, 2] >= 0.5)


def test_every_picture_goes_through_the_model_once(case):
    domain, model, classes, seen = case
    answers.collect(domain, model, classes, [], 10**6, 4, 1)
    distinct = domain.size(classes, train=True) + len({n for b in domain.loader(classes, train=False) for n in b.names})
    assert sum(seen) == distinct < sum(domain.size([name], train=True) for name in classes) * 2


def test_a_class_has_the_items_of_its_first_pictures_only(case):
    domain, model, classes, _ = case
    whole, first = (answers.collect(domain, model, classes, [], most, 4, 0).train for most in (10**6, 1))
    for label in range(len(classes)):
        few, every = first.logits[first.labels == label], whole.logits[whole.labels == label]
        assert 0 < len(few) < len(every) and np.allclose(few, every[: len(few)], atol=1e-5)
