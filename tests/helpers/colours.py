"""Class folders of small coloured images, and a tiny ViT that tells the colours apart."""

from pathlib import Path

import numpy as np
from ks_classification.data.images import ImageSet, Item
from ks_classification.domain import ClassificationDomain, ImageConfig
from ks_classification.models.build import ModelSpec
from PIL import Image

FOLDER = Path(__file__).parents[2] / "image-classification"
COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40),
    "black": (15, 15, 15), "white": (240, 240, 240),
}  # fmt: skip
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def picture(name, number, side=20):
    """[side, side, 3] uint8: the colour with noise."""
    noise = np.random.default_rng([number, *name.encode()]).normal(0, 12, (side, side, 3))
    return (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)


def image_set(names=tuple(COLOURS), train=6, test=3):
    """The images in memory."""
    parts = {
        part: [Item(f"{part}/{c}/{k}", c, picture(c, start + k)) for c in names for k in range(count)]
        for part, start, count in (("train", 0, train), ("test", 100, test))
    }
    return ImageSet(list(names), parts["train"], parts["test"])


def save_folders(root, names=tuple(COLOURS), train=6, test=3, folder=str):
    """root/train/<folder(class)>/0.png and so on; the root as text."""
    for item_set, part in ((image_set(names, train, test), part) for part in ("train", "test")):
        for item in getattr(item_set, part):
            path = Path(root, part, folder(item.label), item.name.rpartition("/")[2] + ".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(item.source).save(path)
    return str(root)


def spec(names, **args):
    """The tiny ViT."""
    return ModelSpec("vit_tiny_patch16_224", {**TINY, **args}, list(names), size=args.get("img_size", 16))


def domain(groups, config=None, base=None, names=None, **options):
    """A domain over the images in memory whose base knows `names`, by default all classes of the groups."""
    names = names or [c for group in groups.values() for c in group]
    return ClassificationDomain(spec(names), image_set(**options), groups, config or ImageConfig(), base=base)
