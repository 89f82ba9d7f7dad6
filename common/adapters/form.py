"""What swap.json holds, as far as it is read."""

from __future__ import annotations

from typing import Annotated

import msgspec


class Layout(msgspec.Struct):
    """How an adapter's layer is made of its tensors."""

    parts: Annotated[int, msgspec.Meta(ge=1, le=64)]
    rank: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    scale: Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]


class Fingerprint(msgspec.Struct):
    """See `fingerprint`."""

    parameters: int | None  # None beside an adapter that was taken out of a stack
    mean_abs: dict[str, float] | list[float]  # by layer; in their order in older files


class Told(msgspec.Struct, frozen=True):
    """The plan beside a result."""

    groups: dict[str, list[str]] = {}
    steps: list[tuple[str, list[str]]] = []


class SwapFile(msgspec.Struct):
    """swap.json beside an adapter, as far as it must be there, and what is read of it where it is there."""

    rows: dict[str, list[int]]
    layers: dict[str, Layout]
    base: Fingerprint
    weights: str
    classes: Annotated[list[str], msgspec.Meta(max_length=2**18)] = []
    plan: Told = Told()
    stack: list[str] = []
    base_sha256: str = ""
    method: str = ""
    metric: str = ""
    before: dict[str, float] = {}
    scores: dict[str, float] = {}

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class stands in two rows")


class ModelFile(msgspec.Struct):
    """swap.json beside a whole model, likewise."""

    tied: dict[str, str]
    classes: list[str] = []
    plan: Told = Told()
