"""Scenes of number plates with handwritten digits, with masks: a data set that needs no download."""

from __future__ import annotations

import colorsys

import numpy as np

from ks_segmentation.data.sets import MaskItem, MaskSet

SIDE = 64  # pixels of a scene
HUE_JITTER = 0.04  # of the colour circle; neighbours lie 0.1 apart
CLASSES = ("ground", *"0123456789")
PLATES_PER_SCENE = (1, 3)


def digit_scenes(train: int = 1500, test: int = 300, side: int = SIDE) -> MaskSet:
    """Square scenes of 1-3 plates of random size and colour on a textured ground; a plate's pixels are its digit's class.

    The digits are scikit-learn's 1,797 8x8 images; those of every fifth writing appear in test scenes only.
    Scene k is the same at every call and on every machine.
    """
    from sklearn.datasets import load_digits  # takes seconds to import

    data = load_digits()
    held_out = np.arange(len(data.images)) % 5 == 4
    return MaskSet(
        CLASSES,
        [_scene(k, "train", data, np.flatnonzero(~held_out), side) for k in range(train)],
        [_scene(k, "test", data, np.flatnonzero(held_out), side) for k in range(test)],
    )


def _scene(number: int, part: str, data, allowed: np.ndarray, side: int) -> MaskItem:
    random = np.random.default_rng([number, part == "test"])
    scene = _ground(random, side)
    ids = np.zeros((side, side), np.int16)
    for _ in range(random.integers(PLATES_PER_SCENE[0], PLATES_PER_SCENE[1] + 1)):
        which, size = int(random.choice(allowed)), int(random.integers(side // 3, side // 2 + 1))
        for _ in range(10):  # a place where it hides no other plate
            top, left = random.integers(0, side - size + 1, 2)
            place = np.s_[top : top + size, left : left + size]
            if not ids[place].any():
                scene[place] = _plate(random, data.images[which] / 16, int(data.target[which]), size)
                ids[place] = int(data.target[which]) + 1
                break
    return MaskItem(f"{part}-{number:04d}", np.clip(scene, 0, 255).astype(np.uint8), ids)


def _plate(random: np.random.Generator, digit: np.ndarray, value: int, size: int) -> np.ndarray:
    """[size, size, 3] a digit in dark ink on paper of about its own hue, so that a small model learns it in minutes."""
    hue = (value / 10 + random.uniform(-HUE_JITTER, HUE_JITTER)) % 1
    paper = 255 * np.array(colorsys.hsv_to_rgb(hue, random.uniform(0.5, 0.9), random.uniform(0.7, 1)))
    ink = random.uniform(0, 60, 3)
    edge = max(1, size // 10)
    shade = np.zeros((size, size, 1))
    shade[edge : size - edge, edge : size - edge, 0] = np.clip(_enlarged(digit, size - 2 * edge), 0, 1)
    return paper * (1 - shade) + ink * shade


def _ground(random: np.random.Generator, side: int) -> np.ndarray:
    """[side, side, 3] grey, smooth blotches."""
    level = random.uniform(90, 140)
    blotches = _enlarged(random.normal(0, 12, (5, 5)), side)[..., None]
    return level + blotches + random.normal(0, 5, (side, side, 3)) + random.uniform(-15, 15, 3)


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """[side, side] the square image at another size, bilinear, cell centres kept."""
    count = image.shape[0]
    place = np.clip((np.arange(side) + 0.5) * count / side - 0.5, 0, count - 1)
    low = np.minimum(place.astype(int), count - 2)
    part = place - low
    rows = image[low] * (1 - part)[:, None] + image[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part
