"""The published DINO R50 4-scale answers, on a checkpoint that is made up from the names of its tensors."""

import hashlib
import zlib
from pathlib import Path

import ks_detection
import numpy as np
import pytest
import torch
from ks_detection.checkpoints.export import published_state
from ks_detection.models.dino.config import DinoConfig
from ks_detection.models.dino.criterion import Criterion
from ks_detection.models.dino.model import Dino
from ks_detection.models.parts.postprocess import post_process

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "dino_r50_4scale.npz")
FIRST = "transformer.decoder.{}.0.{}"  # the name whose values all tied copies share


def made_up(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that stands under `name`: noise seeded by the name, scaled by its kind."""
    head, _, rest = name.removeprefix("transformer.decoder.").partition(".")
    if head in ("class_embed", "bbox_embed"):
        name = FIRST.format(head, rest.partition(".")[2])
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = generator.standard_normal(shape).astype(np.float32)
    leaf = name.split(".")[-1]
    if leaf == "running_var":
        noise = 1 + 0.1 * np.abs(noise)
    elif len(shape) >= 2:
        noise = (noise / np.sqrt(int(np.prod(shape[1:])))).astype(np.float32)
    else:
        noise = 1 + 0.1 * noise if leaf == "weight" else 0.1 * noise
    return torch.from_numpy(noise)


@pytest.fixture(scope="module")
def answers():
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in published_state(Dino(DinoConfig())).items()}
    listing = "\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    assert hashlib.sha256(listing.encode()).hexdigest() == str(GOLDEN["keys"])  # names and shapes as published
    model = ks_detection.load_checkpoint({"model": {name: made_up(name, shape) for name, shape in shapes.items()}})
    generator = np.random.Generator(np.random.PCG64(7))
    sizes = [(3, 224, 288), (3, 256, 256)]
    images = [torch.from_numpy(generator.standard_normal(size).astype(np.float32)) for size in sizes]
    with torch.no_grad():
        return model, model(images)


def test_logits_and_boxes_are_the_published_ones(answers):
    _, outputs = answers
    assert outputs["pred_logits"].shape == (2, 900, 91) and outputs["pred_boxes"].shape == (2, 900, 4)
    logits, boxes = torch.from_numpy(GOLDEN["logits"]), torch.from_numpy(GOLDEN["predicted"])
    distance = (boxes[:, None] - outputs["pred_boxes"][0]).abs().amax(-1)  # the pick of 900 tokens may reorder at ties
    nearest = distance.argmin(1)
    close = (outputs["pred_logits"][0][nearest] - logits).abs().amax(1) < 1e-3
    assert (distance.amin(1)[close] < 1e-4).all() and close.float().mean() > 0.97


def test_every_loss_term_is_the_published_one(answers):
    model, outputs = answers
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.25, 0.3, 0.2, 0.3], [0.7, 0.6, 0.3, 0.5]]
    targets = [
        {"labels": torch.tensor([1, 17, 17]), "boxes": torch.tensor(boxes)},
        {"labels": torch.tensor([44]), "boxes": torch.tensor([[0.4, 0.55, 0.5, 0.6]])},
    ]
    terms = Criterion(model.config)(outputs, targets)
    for name, value in zip(GOLDEN["loss_names"], GOLDEN["losses"], strict=True):
        assert float(terms[str(name)]) == pytest.approx(float(value), rel=1e-3, abs=1e-6), name


def test_the_best_three_hundred_are_the_published_ones(answers):
    _, outputs = answers
    found = post_process(outputs, [(448, 576), (512, 512)])[0]
    torch.testing.assert_close(found["scores"], torch.from_numpy(GOLDEN["scores"]), rtol=1e-4, atol=1e-4)
    same = found["labels"] == torch.from_numpy(GOLDEN["labels"].astype(np.int64))
    assert same.float().mean() > 0.97
    torch.testing.assert_close(found["boxes"][same], torch.from_numpy(GOLDEN["boxes"])[same], rtol=0, atol=0.5)
