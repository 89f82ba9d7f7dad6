"""Masks drawn into images: for the report's gallery and for predict.py."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw

from common.domain import OVERLAP, GalleryItem
from common.images import png
from ks_segmentation.data.augment import scoring_view
from ks_segmentation.data.masks import IGNORE
from ks_segmentation.data.sets import Item
from ks_segmentation.models.parts.inference import ids_at, resized, segment
from ks_segmentation.models.parts.segmenter import Segmenter

SHORTEST, LONGEST = 240, 320  # pixels of the longer side of one image in the gallery
LETTERS, LINE, SPACE = 13, 18, 6  # pixels: height of its text, of a line of text, between images
SHARE = 0.01  # of the image's pixels: smaller answers are not named


def colour(row: int) -> tuple[int, int, int]:
    """A colour for a class: neighbours in the list get hues far apart."""
    hue = (row * 0.618034) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65 + 0.3 * (row % 2), 0.95 - 0.25 * (row // 2 % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def painted(pixels: np.ndarray, ids: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """[H, W, 3] the image with every class id in its colour, edges drawn; ignored pixels stay as they are."""
    result, levels = pixels.copy(), (1 - opacity) * np.arange(256)
    for row in np.flatnonzero(pixels_of(ids)):
        where = ids == row
        for channel, value in enumerate(colour(int(row)) if row != IGNORE else ()):
            table = (levels + opacity * value).astype(np.uint8)  # no fractions of a whole large image
            result[..., channel][where] = table[pixels[..., channel][where]]
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    result[edge] = 255
    return result


def segment_pixels(model: Segmenter, pixels: np.ndarray) -> np.ndarray:
    """[H, W] class ids of an image [H, W, 3] uint8 RGB, of any size."""
    view = scoring_view(torch.from_numpy(pixels).permute(2, 0, 1), model.config.INPUT)
    image = model.normalise(view[None].to(model.pixel_mean.device))
    scores = next(segment(model, image, [pixels.shape[:2]]))
    return ids_at(scores, pixels.shape[:2], torch.int16).cpu().numpy()


def pixels_of(ids: np.ndarray) -> np.ndarray:
    """How many pixels each class id has, by id; strip by strip, for numpy counts a copy in 64 bits."""
    strips = (np.bincount(ids[top : top + 256].ravel()) for top in range(0, len(ids), 256))
    counts = np.zeros(int(ids.max()) + 1, np.int64)
    for strip in strips:
        counts[: len(strip)] += strip
    return counts


def side_by_side(pixels: np.ndarray, masks: Mapping[str, np.ndarray], names: Sequence[str]) -> bytes:
    """PNG bytes of an image and of masks [H, W] painted over it, each with its title above, and the colours below."""
    longer = max(pixels.shape[:2])
    scale = max(1.0, SHORTEST / longer) if longer < SHORTEST else min(1.0, LONGEST / longer)
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    image = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    panels = {"image": image}
    for title, ids in masks.items():
        larger = Image.fromarray(ids.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
        panels[title] = painted(image, np.asarray(larger))
    rows = sorted({row for ids in masks.values() for row in _large(ids)})
    key = _key([(names[row], colour(row)) for row in rows], (size[0] + SPACE) * len(panels) - SPACE)
    sheet = Image.new("RGB", (key.width, size[1] + LINE + SPACE + key.height), "white")
    for i, (title, panel) in enumerate(panels.items()):
        left = i * (size[0] + SPACE)
        sheet.paste(Image.fromarray(panel), (left, LINE))
        ImageDraw.Draw(sheet).text((left + 1, 0), title, fill="black", font_size=LETTERS)
    sheet.paste(key, (0, size[1] + LINE + SPACE))
    return png(sheet)


def _large(ids: np.ndarray) -> list[int]:
    """The rows that fill more than a hundredth of a mask."""
    values, counts = np.unique(ids[ids != IGNORE], return_counts=True)
    return [int(row) for row, count in zip(values, counts, strict=True) if count >= SHARE * ids.size]


def _key(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> Image.Image:
    """What the colours stand for, in lines of this width."""
    pen, places, x, y = ImageDraw.Draw(Image.new("RGB", (1, 1))), [], 0, 0
    for name, _ in entries:
        wide = LINE + round(pen.textlength(name, font_size=LETTERS)) + 2 * SPACE
        x, y = (x, y) if not x or x + wide <= width else (0, y + LINE)
        places.append((x, y))
        x += wide
    sheet = Image.new("RGB", (width, y + LINE if entries else 1), "white")
    pen = ImageDraw.Draw(sheet)
    for (name, paint), (x, y) in zip(entries, places, strict=True):
        pen.rectangle((x, y + 2, x + LETTERS - 2, y + LETTERS), fill=paint)
        pen.text((x + LETTERS + 2, y), name, fill="black", font_size=LETTERS)
    return sheet


def shown(model: Segmenter, item: Item, truth: np.ndarray, names: Sequence[str]) -> GalleryItem:
    """An image, its truth [H, W] and the model's answer side by side, and what they hold in words."""
    pixels = item.pixels()
    answer = segment_pixels(model, pixels)
    sheet = side_by_side(pixels, {"truth": truth, "answer": answer}, names)
    return GalleryItem(item.name, sheet, _named(truth, names), _named(answer, names, truth), None)


def sighting(model: Segmenter, item: Item, truth: np.ndarray, names: Sequence[str]) -> GalleryItem:
    """An image with the mask of the surest region that covers each true segment, whatever it is called.

    Args:
        truth: [H, W] of the classes asked for, `IGNORE` elsewhere.
    """
    pixels = item.pixels()
    view = scoring_view(torch.from_numpy(pixels).permute(2, 0, 1), model.config.INPUT)
    outputs = model(model.normalise(view[None].to(model.pixel_mean.device)))
    fit = partial(resized, size=truth.shape)
    masks, called, sure = (part.cpu().numpy() for part in model.regions(outputs, 0, fit))
    answer, words, right = np.full_like(truth, IGNORE), [], True
    for row in (int(r) for r in np.unique(truth[truth != IGNORE])):
        own = truth == row
        covers = (masks & own).sum((1, 2)) / np.maximum((masks | own).sum((1, 2)), 1)
        best = int(np.where(covers >= OVERLAP, 1 + sure, covers).argmax())
        now = int(called[best])
        answer[masks[best]] = now if now < len(names) else row
        name = f"{names[now]} ({100 * sure[best]:.0f} %)" if now < len(names) else "no object"
        words.append(f"{names[row]} is called {name}, IoU {covers[best]:.2f}")
        right &= now == row
    sheet = side_by_side(pixels, {"truth": truth, "best mask": answer}, names)
    return GalleryItem(item.name, sheet, _named(truth, names), "; ".join(words), right)


def _named(ids: np.ndarray, names: Sequence[str], truth: np.ndarray | None = None) -> str:
    """'car, road (IoU 93 %)': classes by area; with a truth, each with its IoU in this image."""
    values, counts = np.unique(ids[ids != IGNORE], return_counts=True)
    words = []
    for row in values[np.argsort(-counts)]:
        if (ids == row).mean() < SHARE:
            continue
        word = names[int(row)]
        if truth is not None:
            counted = truth != IGNORE
            both = ((ids == row) & (truth == row)).sum()
            either = (((ids == row) | (truth == row)) & counted).sum()
            word += f" (IoU {100 * both / max(either, 1):.0f} %)"
        words.append(word)
    return ", ".join(words) or "nothing"
