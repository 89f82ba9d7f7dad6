"""A swap of a tiny detector on eight made-up pictures, in one process or several."""

import os

import torch
from ks_detection.data.records import Annotation, DetectionSet, ImageRecord
from ks_detection.domain import DetectionDomain
from ks_detection.view import ImageConfig
from PIL import Image
from tiny_deformable import tiny_deformable
from tiny_dino import tiny_dino
from toy import make_trainer

from common import distributed
from common.domain import ClassTable
from common.frozen import NOTHING
from common.plan import make_plan

SMALL = {"augment": False, "test_size": 64, "longest": 96, "eval_batch": 2}
GROUPS = {"learn": ("new",), "forget": ("b",), "retain": ("a", "c")}


def picture(number: int, *labels: str) -> ImageRecord:
    annotations = tuple(Annotation(label, (4.0 + 20 * i, 8.0, 20.0 + 20 * i, 40.0)) for i, label in enumerate(labels))
    image = Image.new("RGB", (72, 64), (40 * number % 255, 80, 120))
    for i, _ in enumerate(labels):
        image.paste((250, 30 * i, 10), (4 + 20 * i, 8, 20 + 20 * i, 40))
    return ImageRecord(f"p{number}", None, image.width, image.height, annotations, image)


def pictures() -> DetectionSet:
    rows = [("a",), ("a", "b"), ("b",), ("c", "new"), ("new",), ("c",), ("new", "a", "b"), ("c",)]
    made = [picture(i, *labels) for i, labels in enumerate(rows)]
    return DetectionSet(made, made, ["a", "b", "c", "new"])


KINDS = {"dino": tiny_dino, "deformable": tiny_deformable}


def base(kind="dino", **changes):
    model = KINDS[kind](num_classes=3, **changes)
    model.class_table = ClassTable(("a", "b", "c"), (1, 5, 9))
    return model


def domain(model=None, frozen=NOTHING, **changes) -> DetectionDomain:
    return DetectionDomain(model or base(), pictures(), GROUPS, ImageConfig(**(SMALL | changes)), frozen=frozen)


def run_swap(folder, order="fltf", batch_size=2, model=None, **changes):
    """(trainer, metrics) of a swap of two steps per phase."""
    own = domain(model, **changes)
    plan = make_plan(order, *(GROUPS[name] for name in ("learn", "forget", "retain")))
    trainer = make_trainer(own, plan, "gs_lora", folder, steps=2, batch_size=batch_size, lr=1e-3, bound=8.0)
    return trainer, trainer.swap()


def without_noise(kind: str):
    """The base model of a comparison: DINO without denoising, whose noise is each rank's own."""
    return base(kind, **({"use_dn": False} if kind == "dino" else {}))


def run_rank(number: int, world: int, port: int, folder: str, batch_size: int, first: int = 0) -> None:
    """Rank `first + number` of a distributed swap of each kind of detector, into FOLDER/kind."""
    rank = first + number
    torch.set_num_threads(1)
    if world > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
    for kind in KINDS:
        run_swap(f"{folder}/{kind}", batch_size=batch_size, model=without_noise(kind))
    distributed.close()
