"""Which logit row of an ImageNet classifier a class folder is, by WordNet id or by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from common.errors import UserError
from common.splits import read_list, shorten

ID = re.compile(r"n\d{8}")  # of WordNet


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


def as_called(wanted: str, classes: Sequence[str]) -> list[str]:
    """The classes of a flag under the names that they have here: "English springer" may be n02102040, or english_springer.

    Entries that this does not know stay as they are.

    Args:
        wanted: the flag's text, see `read_list`.
        classes: names of rows and folders.

    Raises:
        UserError: a name stands for several of the classes.
    """
    entries = read_list(wanted)
    known = {*classes, *map(str, range(len(classes)))}
    if known.issuperset(entries):
        return entries
    called: dict[str, list[str]] = {}
    for name in classes:
        called.setdefault(_plain(name), []).append(name)
    from timm.data import ImageNetInfo

    for subset in ("imagenet-1k", "imagenet-22k"):  # the names of the larger one are less telling
        if any(ID.fullmatch(name) for name in classes) and not all(called.get(_plain(e)) for e in entries):
            info = ImageNetInfo(subset)
            ids = list(info.label_names())
            for name, rows in _rows_by_name(ids, info.label_descriptions()).items():
                if here := [ids[row] for row in rows if ids[row] in known]:
                    called.setdefault(name, here)
    found = []
    for entry in entries:
        own = called.get(_plain(entry)) or [entry]
        if entry not in known and len(own) > 1:
            raise UserError(f"class {entry!r} may be any of {', '.join(own)}; name one of these.")
        found.append(entry if entry in known else own[0])
    return found


def titles(classes: Sequence[str]) -> dict[str, str]:
    """What ImageNet calls the classes that are WordNet ids: "n02102040" -> "English springer"."""
    missing = {name for name in classes if ID.fullmatch(name)}
    found: dict[str, str] = {}
    for subset in ("imagenet-1k", "imagenet-22k"):
        if missing:
            from timm.data import ImageNetInfo

            info = ImageNetInfo(subset)
            named = zip(info.label_names(), info.label_descriptions(), strict=True)
            found |= {name: text.partition(",")[0] for name, text in named if name in missing}
            missing -= found.keys()
    return {name: found[name] for name in classes if name in found}


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
