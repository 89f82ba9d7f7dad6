"""Scenes of handwritten digits with boxes: scikit-learn's 1,797 digits, pasted into 128-pixel images."""

from __future__ import annotations

import numpy as np
from PIL import Image

from common.errors import UserError
from ks_detection.data.records import Annotation, DetectionSet, ImageRecord

SIDE = 128  # pixels of a scene
# How scenes are viewed where no flag says otherwise: they are small, and a mirrored digit is none.
VIEW = {
    "flip": False, "sizes": "120-136:8", "longest": 160, "before_crop": "128,144", "crop": "116,128", "test_size": 128,
}  # fmt: skip
COUNTS = {"train": 1500, "test": 200}  # scenes
SMALLEST, LARGEST = 22, 44  # side of a pasted digit, pixels
MOST = 5  # digits per scene


def digit_scenes(digits: str = "", seed: int = 0, counts: dict[str, int] | None = None) -> DetectionSet:
    """Scenes with one to five digits, each in its box; the same ones for the same arguments on any machine.

    Test scenes hold digits written by other hands' samples than training scenes: every fifth digit image.

    Args:
        digits: which digits appear, such as "01234567"; empty for all ten.
        counts: scenes per part, {"train": ..., "test": ...}.

    Raises:
        UserError: something else than digits.
    """
    from sklearn.datasets import load_digits

    wanted = sorted({int(d) for d in digits if d.isdigit()}) if digits else list(range(10))
    if digits and (not wanted or not digits.isdigit()):
        raise UserError(f"--data digits:{digits}: name digits, such as digits:01234567.")
    data = load_digits()
    tests = np.arange(len(data.target)) % 5 == 4
    parts = {}
    for number, (part, chosen) in enumerate((("train", ~tests), ("test", tests))):
        pools = {digit: np.flatnonzero(chosen & (data.target == digit)) for digit in wanted}
        rng = np.random.default_rng([seed, number, *wanted])
        count = (counts or COUNTS)[part]
        parts[part] = [_scene(f"{part}_{digits or 'all'}_{i:04d}", data.images, pools, rng) for i in range(count)]
    ids = {str(digit): digit for digit in wanted}
    return DetectionSet(parts["train"], parts["test"], list(ids), ids)


def _scene(name: str, images: np.ndarray, pools: dict[int, np.ndarray], rng: np.random.Generator) -> ImageRecord:
    canvas = _background(rng)
    annotations: list[Annotation] = []
    for _ in range(int(rng.integers(1, MOST + 1))):
        digit = int(rng.choice(list(pools)))
        ink = _ink(images[int(rng.choice(pools[digit]))], int(rng.integers(SMALLEST, LARGEST + 1)))
        place = _free_place(ink.shape, annotations, rng)
        if place is None:
            continue
        top, left = place
        height, width = ink.shape
        color = rng.uniform(0, 255, 3) if rng.random() < 0.5 else np.array([250.0, 250.0, 250.0])
        if abs(color.mean() - canvas.mean()) < 60:  # digits must stand out
            color = 255 - color if canvas.mean() > 127 else color * 0.3 + 170
        spot = canvas[top : top + height, left : left + width]
        spot += ink[..., None] * (color - spot)
        annotations.append(Annotation(str(digit), (float(left), float(top), float(left + width), float(top + height))))
    pixels = np.clip(canvas + rng.normal(0, 6, canvas.shape), 0, 255).astype(np.uint8)
    return ImageRecord(name, None, SIDE, SIDE, tuple(annotations), Image.fromarray(pixels))


def _background(rng: np.random.Generator) -> np.ndarray:
    """[128, 128, 3] float: a smooth dark blend of a few colours."""
    corners = rng.uniform(10, 110, (4, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(corners).resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64).copy()


def _ink(digit: np.ndarray, side: int) -> np.ndarray:
    """[h, w] in 0..1: the strokes of an 8x8 digit, enlarged so that the longer side has `side` pixels, cut tight."""
    large = Image.fromarray((digit * (255 / 16)).astype(np.uint8)).resize(
        (4 * side // 3, 4 * side // 3), Image.Resampling.BICUBIC
    )
    ink = np.asarray(large, dtype=np.float64) / 255
    rows, columns = np.flatnonzero(ink.max(1) > 0.3), np.flatnonzero(ink.max(0) > 0.3)
    return np.clip(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] * 1.3, 0, 1)


def _free_place(
    shape: tuple[int, int], annotations: list[Annotation], rng: np.random.Generator
) -> tuple[int, int] | None:
    """(top, left) where a box of this shape overlaps no other by more than a tenth, or None after 20 tries."""
    height, width = shape
    if height >= SIDE or width >= SIDE:
        return None
    for _ in range(20):
        top, left = int(rng.integers(0, SIDE - height)), int(rng.integers(0, SIDE - width))
        if all(_overlap((left, top, left + width, top + height), a.box) <= 0.1 * height * width for a in annotations):
            return top, left
    return None


def _overlap(a: tuple, b: tuple) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
