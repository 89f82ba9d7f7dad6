"""Which training images a run uses: all, a share, K of each class, or those of an earlier run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from common import splits
from common.domain import ClassTable
from common.errors import UserError
from common.schema import read_json
from ks_classification.data.images import ImageSet, Item
from ks_classification.data.pixels import ImageConfig

SPLIT = "split.json"  # the file of a run folder that names its images


class SplitFile(msgspec.Struct):
    """What it holds, as far as it is used again."""

    train: list[str]


def choose(
    items: Sequence[Item], groups: Mapping[str, Sequence[str]], roles: Mapping[str, str], classes: ClassTable,
    config: ImageConfig, seed: int,
) -> set[str] | None:  # fmt: skip
    """Names of the training items that are used, or None when all are.

    Args:
        groups: group name -> classes.
        roles: group name -> "learn", "forget" or "retain", which decides its fraction (default: its name).

    Raises:
        UserError: too few images for K shots, or a split that does not fit these images.
    """
    if config.split:
        return _of_earlier_run(config.split, items, [c for group in groups.values() for c in group])
    shares = {"learn": config.learn_fraction, "forget": config.forget_fraction}
    if not config.shots and all(share == 1.0 for share in (*shares.values(), config.retain_fraction)):
        return None
    names: set[str] = set()
    for group, members in groups.items():
        found = [i for i in items if i.label in members]
        _check_shots(found, members, config.shots)
        fraction = shares.get(roles.get(group, group), config.retain_fraction)
        picked = splits.subset([classes.row(i.label) for i in found], seed, fraction, config.shots, config.stratified)
        names.update(found[p].name for p in picked)
    return names


def held_out(images: ImageSet, share: float) -> ImageSet:
    """The training images alone: a share of each class, the same at every call, takes the place of the test images."""
    rank = {name: i for i, name in enumerate(images.classes)}
    chosen = set(splits.subset([rank[item.label] for item in images.train], 0, share))
    train, test = ([item for i, item in enumerate(images.train) if (i in chosen) == held] for held in (False, True))
    return replace(images, train=train, test=test)


def _check_shots(items: Sequence[Item], classes: Sequence[str], shots: int) -> None:
    for name in classes if shots else ():
        count = sum(i.label == name for i in items)
        if count < shots:
            raise UserError(
                f"`--shots {shots}`: class {name!r} has {count} training images; ask for no more than that."
            )


def _of_earlier_run(path: str, items: Sequence[Item], classes: Sequence[str]) -> set[str]:
    file = Path(path) / SPLIT if Path(path).is_dir() else Path(path)
    names = set(read_json(file, SplitFile, "it is no split, which has a list `train` of image names").train)
    covered = {i.label for i in items if i.name in names}
    bare = [c for c in classes if c not in covered]
    if bare:
        raise UserError(
            f"`--split {path}` names no training image of class {bare[0]!r} that --data has; "
            "it must come from a run on the same images and classes."
        )
    return names


def digest(names: set[str]) -> str:
    """A short name for a set of images, for the record."""
    return hashlib.blake2b("\n".join(sorted(names)).encode(errors="surrogatepass"), digest_size=8).hexdigest()
