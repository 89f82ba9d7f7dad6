"""Which logit row of an ImageNet classifier a class folder is, by WordNet id or by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from common.errors import UserError
from common.splits import shorten


def row_names(rows: int, classes: Sequence[str]) -> list[str] | None:
    """A name for every row of an ImageNet classifier: the folder's own where there is one, else the WordNet id.

    Classes that are no ImageNet class get no row; they are new to the model. Printed where there are some.

    Args:
        rows: logit rows of the model; their number tells which ImageNet it is (1000, or the larger ones of timm).
        classes: WordNet ids (n02102040) or names (english_springer) of folders.

    Returns:
        None where the rows are no ImageNet, or none of the classes is in it. Where there are as many classes as
        rows, also None if most of them are none of it: other classes in other rows.

    Raises:
        UserError: a name stands for several rows, or two classes for the same row.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": rows})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    names = list(info.label_names())
    known = _rows_by_name(names, info.label_descriptions())
    found = {name: known[_plain(name)] for name in classes if _plain(name) in known}
    if not found or (len(classes) == rows and 2 * len(found) <= rows):
        return None
    owner: dict[int, str] = {}
    for name, candidates in found.items():
        if len(candidates) > 1:
            ids = " and ".join(names[row] for row in candidates)
            raise UserError(
                f"class {name!r} may be any of the ImageNet classes {ids}; call its folder by one of these."
            )
        twin = owner.setdefault(candidates[0], name)
        if twin != name:
            raise UserError(
                f"classes {twin!r} and {name!r} are both ImageNet's {names[candidates[0]]}; join their folders."
            )
    new = [name for name in classes if name not in found]
    if new:
        print(f"no ImageNet class, so new to the model: {shorten(new, 8)}", file=sys.stderr)
    return [owner.get(row, name) for row, name in enumerate(names)]


def _rows_by_name(ids: Sequence[str], descriptions: Sequence[str]) -> dict[str, list[int]]:
    """Plain name -> rows; a name that is the first of one description and a later one of others means the first."""
    rows: dict[str, list[int]] = {}
    for others in (False, True):
        own: dict[str, list[int]] = {}
        for row, (name, text) in enumerate(zip(ids, descriptions, strict=True)):
            first, *more = (_plain(piece) for piece in text.split(","))
            for key in dict.fromkeys(more if others else (name, first)):
                own.setdefault(key, []).append(row)
        rows = own | rows
    return rows


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))
