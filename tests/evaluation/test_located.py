"""What is seen but unnamed: detections and segments that cover a thing, whatever they are called."""

import torch
from tiny_swap import domain as detection


def covered(model, own, boxes, logits):
    batch = next(iter(own.loader(["b"], train=False)))
    return own.located(model, batch, {"pred_logits": logits, "pred_boxes": boxes})


def test_a_detection_under_another_name_is_seen_but_unnamed():
    own = detection()
    model = own.build_model().eval()
    batch = next(iter(own.loader(["b"], train=False)))
    count = len(batch.targets)
    boxes = torch.stack([t["boxes"][:1].expand(2, 4).clone() for t in batch.targets])  # query 0 lies on the object
    boxes[:, 1] = torch.tensor([0.9, 0.9, 0.02, 0.02])
    logits = torch.full((count, 2, len(own.classes)), -4.0)
    logits[:, 0, own.classes.row("a")] = 3
    any_class, named, called = covered(model, own, boxes, logits).T
    assert torch.allclose(any_class, torch.ones(count)) and float(named.max()) == 0
    assert torch.equal(called, torch.full((count,), float(own.classes.row("a"))))
    logits[:, 0, own.classes.row("b")] = 5
    any_class, named, called = covered(model, own, boxes, logits).T
    assert torch.allclose(named, torch.ones(count))
    *_, called = covered(model, own, boxes, logits - 9).T  # below what is shown
    assert torch.equal(called, torch.full((count,), float(len(own.classes))))


def test_classification_has_no_places():
    from blobs import pretrained

    own = pretrained(4)
    assert own.pictures(["0"], train=False, most=1) is None
    assert torch.equal(own.confidence(torch.tensor([[0.0, 0.0]])), torch.tensor([0.5]))
