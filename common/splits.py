"""Which classes are learned, forgotten and retained, and which of their training items are used."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from common.errors import UserError
from common.files import read_text
from common.streams import derive


def read_list(text: str) -> list[str]:
    """Names from a flag: 'a,b,c', '"salt, pepper",c', or '@file' with one per line (# starts a comment)."""
    if text.startswith("@"):
        lines = read_text(Path(text[1:])).splitlines()
        named = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
        if not named:
            raise UserError(f"{text} names no class; write one per line.")
        return named
    try:
        return [piece.strip() for piece in next(csv.reader([text], skipinitialspace=True), []) if piece.strip()]
    except csv.Error as error:
        raise UserError(f"class list {shorten([text[:80]])!r} cannot be read: {error}.") from None


def write_list(names: Iterable[str]) -> str:
    """The text that `read_list` takes apart into these names."""
    quoted = ('"' + name.replace('"', '""') + '"' if "," in name or name[:1] in ('"', "@") else name for name in names)
    return ",".join(quoted)


def stated_rows(text: str, rows: int) -> list[str]:
    """The names of a checkpoint's first logit rows, from --class-names. Raises UserError for more names than `rows`."""
    names = read_list(text)
    if len(names) > rows:
        raise UserError(f"--class-names holds {len(names)} names, but the checkpoint has {rows} logit rows.")
    return names


def every_row(names: Sequence[str], rows: int) -> list[str]:
    """The names, and those of the rows behind them: row_17 and the like."""
    return [*names, *(f"row_{i}" for i in range(len(names), rows))]


def resolve(wanted: str | Sequence[object], available: Sequence[str], what: str) -> list[str]:
    """Class names from names or 0-based indices into `available`; a name wins over an index.

    Args:
        wanted: a flag's text (see `read_list`) or a list.
        what: how to call it in an error ("--forget").

    Raises:
        UserError: unknown class, or one named twice; lists what exists.
    """
    entries = read_list(wanted) if isinstance(wanted, str) else [str(entry) for entry in wanted]
    if wanted and not entries:
        raise UserError(f"{what} {wanted!r} names no class; there are: {shorten(available)}.")
    names = []
    for entry in entries:
        if entry in available:
            names.append(entry)
        elif re.fullmatch("[0-9]{1,9}", entry) and int(entry) < len(available):
            names.append(available[int(entry)])
        else:
            raise UserError(f"{what}: unknown class {entry!r}; there are: {shorten(available)}.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{what}: class {twice[0]!r} is named twice.")
    return names


def shorten(names: Sequence[str], limit: int = 60) -> str:
    """Names for an error message, all of them up to `limit`."""
    shown = ", ".join(write_list([str(name)]) for name in names[:limit])  # those with a comma as they are to be typed
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def groups_from_flags(
    learn: str, forget: str, retain: str, base: Sequence[str], new: Sequence[str], gone: Sequence[str] = ()
) -> dict[str, list[str]]:
    """{"learn": ..., "forget": ..., "retain": ...} from three flags; without `retain`, all other base classes.

    Args:
        base: classes the pretrained model knows.
        new: classes the training data offers beyond them.
        gone: classes of `base` that the model has forgotten before.

    Raises:
        UserError: unknown classes, overlaps, nothing left to retain.
    """
    everything = [*base, *(n for n in new if n not in base)]
    chosen = {"learn": resolve(learn, everything, "--learn"), "forget": resolve(forget, everything, "--forget")}
    both = sorted(set(chosen["learn"]) & set(chosen["forget"]))
    if both:
        raise UserError(f"class {both[0]!r} is in both --learn and --forget; each class belongs to exactly one group.")
    stranger = [c for c in chosen["forget"] if c not in base]
    if stranger:
        raise UserError(f"--forget: the model does not know class {stranger[0]!r}; it knows: {shorten(base)}.")
    known = [c for c in chosen["learn"] if c in base and c not in gone]
    if known:
        raise UserError(
            f"--learn: the model knows class {known[0]!r} already; new ones are: {shorten([n for n in new if n not in base])}."
        )
    if retain:
        chosen["retain"] = resolve(retain, base, "--retain")
    else:
        chosen["retain"] = [c for c in base if c not in chosen["forget"] and c not in gone]
    lost = [c for c in chosen["retain"] if c in gone]
    if lost:
        raise UserError(f"--retain: the base model has forgotten class {lost[0]!r}; leave it out, or --learn it again.")
    if not chosen["retain"]:
        raise UserError("no class is left to retain; forget fewer classes.")
    return chosen


def subset(
    labels: Sequence[int], seed: int, fraction: float = 1.0, shots: int = 0, stratified: bool = True
) -> list[int]:
    """Sorted indices of the items to use.

    Args:
        labels: class of each item.
        fraction: share of each class, at least one item of each.
        shots: this many items of each class instead, when not 0.
        stratified: False draws `int(fraction * N)` items whatever their class (the published behaviour).

    Raises:
        UserError: fraction outside (0, 1], or a class with fewer items than `shots`.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"a fraction of the training data must be above 0 and at most 1, got {fraction}.")
    if shots < 0:
        raise UserError(f"`--shots` must not be negative, got {shots}.")
    generator = torch.Generator().manual_seed(derive(seed, "subset"))
    if not stratified and not shots:
        return sorted(torch.randperm(len(labels), generator=generator)[: int(fraction * len(labels))].tolist())
    chosen: list[int] = []
    for label in sorted(set(labels)):
        members = [i for i, own in enumerate(labels) if own == label]
        if shots and len(members) < shots:
            raise UserError(f"{shots} shots were asked for, but class {label} has {len(members)} training items.")
        count = shots or max(1, round(fraction * len(members)))
        chosen += [members[i] for i in torch.randperm(len(members), generator=generator)[:count].tolist()]
    return sorted(chosen)


def spaced(lists: Sequence[Sequence[int]], most: int) -> list[int]:
    """At most `most` numbers of several lists: in turn from each, evenly spaced within it, none twice."""
    each = -(-most // max(1, len(lists)))
    chosen = [[own[k * len(own) // each] for k in range(each)] if len(own) > each else own for own in lists]
    return list(dict.fromkeys(own[k] for k in range(each) for own in chosen if k < len(own)))[:most]
