"""Semantic inference: class scores of every pixel at the size of the original image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError

Size = tuple[int, int]
STRIP = 2**24  # scores that are resized at once
WHOLE = 2**27  # scores that are kept of an image
MAPS = 200  # that a model may answer with


def class_scores(logits: Tensor, masks: Tensor) -> Tensor:
    """[..., K, H, W] score of every class at every pixel.

    Args:
        logits: [..., Q, K + 1] class logits of the queries; the "no object" column takes part in the softmax only.
        masks: [..., Q, H, W] mask logits.

    Source: Cheng et al., 2021, arXiv:2107.06278, section 3.4.
    """
    with torch.autocast(masks.device.type, enabled=False):
        chances = logits.float().softmax(-1)[..., :-1].transpose(-2, -1)
        return (chances @ masks.float().sigmoid().flatten(-2)).unflatten(-1, masks.shape[-2:])


def resized(x: Tensor, size: Size) -> Tensor:
    """[C, H, W] at another size, bilinear."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def ids_at(scores: Tensor, size: Size, dtype: torch.dtype = torch.long) -> Tensor:
    """[H, W] the class of the highest score at another size: `resized(scores, size).argmax(0)`.

    Large answers are made by strips of rows: the scores of 150 classes for 48 megapixels would fill 29 GB.
    """
    (count, rows, _), (height, width) = scores.shape, size
    if scores.shape[-2:] == tuple(size) or count * height * width <= STRIP:
        return resized(scores, size).argmax(0).to(dtype)
    ids = torch.empty(size, dtype=dtype, device=scores.device)
    step = max(1, STRIP // (count * width))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        place = ((torch.arange(top, bottom, device=scores.device) + 0.5) * (rows / height) - 0.5).clamp(min=0)
        above = place.floor().long()
        below = (above + 1).clamp(max=rows - 1)
        strip = torch.lerp(scores[:, above], scores[:, below], (place - above).to(scores)[:, None])
        ids[top:bottom] = resized(strip, (bottom - top, width)).argmax(0)
    return ids


def bounded(size: Size, maps: int) -> Size:
    """`size`, or one of the same shape at which so many maps hold at most `WHOLE` values."""
    scale = min(1.0, (WHOLE / (maps * size[0] * size[1])) ** 0.5)
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def segment(
    model: nn.Module, images: Tensor | Sequence[Tensor], sizes: Sequence[Size], valid: Sequence[Size] | None = None
) -> Iterator[Tensor]:
    """Scores [K, h, w] of each image in turn, of its own size or smaller; see `Segmenter.segment` for the arguments.

    `TEST.SLIDING_WINDOW` and `TEST.AUG` of the model's config choose windows and flipped or rescaled copies.
    """
    images, valid = _batch(images, valid)
    if len(sizes) != len(images):
        raise UserError(f"`sizes` has {len(sizes)} entries for {len(images)} images.")
    test = model.config.TEST
    if test.AUG.ENABLED:
        for image, size, inside in zip(images, sizes, valid, strict=True):
            yield _averaged(model, image[:, : inside[0], : inside[1]], size)
    elif test.SLIDING_WINDOW and max(images.shape[-2:]) > test.SLIDING_WINDOW:
        for image, inside in zip(images, valid, strict=True):
            yield _windows(model, image[:, : inside[0], : inside[1]], test.SLIDING_WINDOW)
    else:
        yield from _plain(model, images, sizes, valid)


def _batch(images: Tensor | Sequence[Tensor], valid: Sequence[Size] | None) -> tuple[Tensor, Sequence[Size]]:
    if not isinstance(images, Tensor):
        valid = valid or [tuple(image.shape[-2:]) for image in images]
        height, width = (max(image.shape[i] for image in images) for i in (-2, -1))
        images = torch.stack([_padded(image, height, width) for image in images])
    return images, valid or [tuple(images.shape[-2:])] * len(images)


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


def _plain(model: nn.Module, images: Tensor, sizes: Sequence[Size], valid: Sequence[Size]) -> Iterator[Tensor]:
    former = model.config.MODEL.MASK_FORMER
    unit = max(former.SIZE_DIVISIBILITY, 1)
    height, width = (-(-side // unit) * unit for side in images.shape[-2:])
    outputs = model(_padded(images, height, width))
    early = former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
    for index, (size, inside) in enumerate(zip(sizes, valid, strict=True)):
        fit = partial(_fitted, whole=(height, width), inside=inside, size=bounded(size, MAPS) if early else inside)
        yield model.post_process(outputs, index, fit)


def _fitted(maps: Tensor, whole: Size, inside: Size, size: Size) -> Tensor:
    """Maps [C, h, w] of a padded image, on the image alone, at `size`."""
    return resized(resized(maps.float(), whole)[:, : inside[0], : inside[1]], size)


def _averaged(model: nn.Module, image: Tensor, size: Size) -> Tensor:
    """Mean scores over the sizes of TEST.AUG.MIN_SIZES, flipped too if TEST.AUG.FLIP says so."""
    aug = model.config.TEST.AUG
    total, size = None, bounded(size, MAPS)
    for shortest in aug.MIN_SIZES:
        copy = resized(image, shortest_edge(image.shape[-2:], shortest, aug.MAX_SIZE))
        for flip in (False, True) if aug.FLIP else (False,):
            view = copy.flip(-1) if flip else copy
            scores = resized(next(_plain(model, view[None], [size], [tuple(view.shape[-2:])])), size)
            scores = scores.flip(-1) if flip else scores
            total = scores if total is None else total.add_(scores)
    return total / (len(aug.MIN_SIZES) * (2 if aug.FLIP else 1))


def shortest_edge(size: Sequence[int], shortest: int, longest: int) -> Size:
    """(height, width) scaled so that the short side is `shortest`, unless the long one would exceed `longest`."""
    height, width = size
    scale = shortest / min(height, width)
    if max(height, width) * scale > longest:
        scale = longest / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def _windows(model: nn.Module, image: Tensor, side: int) -> Tensor:
    """Mean scores of square windows that overlap by a third, at the size of `image`."""
    total = counts = None
    height, width = image.shape[-2:]
    for top in _starts(height, side):
        for left in _starts(width, side):
            part = image[:, top : top + side, left : left + side]
            size = tuple(part.shape[-2:])
            scores = next(_plain(model, part[None], [size], [size]))
            if total is None:
                total, counts = scores.new_zeros(len(scores), height, width), scores.new_zeros(height, width)
            total[:, top : top + side, left : left + side] += scores
            counts[top : top + side, left : left + side] += 1
    return total / counts


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = -(-(length - side) // (side * 2 // 3 or 1)) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]
