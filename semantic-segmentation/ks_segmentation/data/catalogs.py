"""Registers our data in detectron2's catalogs, where detectron2 is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.errors import UserError
from common.images import size_of
from ks_segmentation.data import layouts
from ks_segmentation.data.masks import IGNORE
from ks_segmentation.data.scan import mask_file
from ks_segmentation.data.sets import MaskItem, MaskSet
from ks_segmentation.gallery import colour


def entries(items: Sequence[MaskItem], cache: str | Path) -> list[dict[str, Any]]:
    """detectron2's dicts: file_name, sem_seg_file_name, height, width.

    Args:
        cache: folder for masks whose files do not hold class indices; they are written there once.

    Raises:
        UserError: an item that is not a file.
    """
    Path(cache).mkdir(parents=True, exist_ok=True)
    found = []
    for item in items:
        mask = mask_file(item)
        if mask is None:
            raise UserError("detectron2 reads files; these images are made in memory.")
        if any(i != c for i, c in item.table.index.items() if c != IGNORE):
            mask = Path(cache) / f"{item.name.replace('/', '_')}.png"
            if not mask.is_file():
                Image.fromarray(item.ids().astype(np.uint8)).save(mask)
        width, height = size_of(item.image)
        found.append({"file_name": str(item.image), "sem_seg_file_name": str(mask), "height": height, "width": width})
    return found


def register(name: str, data: str | MaskSet, cache: str | Path = "data/detectron2") -> list[str]:
    """Registers `NAME_train` and `NAME_val` in DatasetCatalog and MetadataCatalog; returns the names.

    Args:
        data: KIND:FOLDER (see `layouts.load`), or a MaskSet.

    Raises:
        UserError: detectron2 is not installed, or the data is not there.
    """
    try:
        from detectron2.data import DatasetCatalog, MetadataCatalog
    except ImportError:
        raise UserError(
            "detectron2 is not installed here; nothing of this project needs it but this function."
        ) from None
    found = layouts.load(data) if isinstance(data, str) else data
    names = []
    for split, items in (("train", found.train), ("val", found.test)):
        full = f"{name}_{split}"
        DatasetCatalog.register(full, lambda items=items, split=split: entries(items, Path(cache) / split))
        MetadataCatalog.get(full).set(
            stuff_classes=list(found.classes),
            stuff_colors=[list(colour(i)) for i in range(len(found.classes))],
            evaluator_type="sem_seg",
            ignore_label=IGNORE,
        )
        names.append(full)
    return names
