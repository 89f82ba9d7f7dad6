"""What a report reads of a run folder's files; a page takes nothing for granted that is not said here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgspec

from common.errors import UserError, first_line

Score = float | None  # None where something was not scored
Axes = Annotated[list[str], msgspec.Meta(min_length=2, max_length=2)]


class Picture(msgspec.Struct):
    """An entry of gallery.json: see `common.domain.GalleryItem`; the picture in base64."""

    name: str
    picture: str
    truth: str
    answer: str
    correct: bool | None


class Spill(msgspec.Struct):
    """Where the answers on a forgotten class went: see `common.evaluation.spill`."""

    answers: dict[str, float]
    confidence: Score
    distance: float = 1.0


class Ended(msgspec.Struct):
    """How a phase ended that could settle."""

    settled: bool
    limit: int
    steps: int = 0
    share: float = 0


class MetricLine(msgspec.Struct):
    """A line of metrics.jsonl, as far as it must be there."""

    phase: int
    epoch: int | None = None
    step: int | None = None
    end: bool = False
    weight: float = 0
    adapter_norm: dict[str, float] = {}
    adapter_moved: dict[str, float] = {}
    zero_groups: float = 0
    spill: dict[str, Spill] = {}
    from_peak: dict[str, float] = {}
    measures: dict[str, Score] = {}
    guard: dict[str, Any] = {}
    sample: dict[str, Score] = {}
    ended: Ended | None = None
    action: str = ""
    group: str | None = None
    score: Score = None
    per_class: dict[str, Score] = {}


class StepLine(msgspec.Struct):
    """A line of steps.jsonl, likewise."""

    phase: int
    step: int
    loss: float


class DoneFile(msgspec.Struct):
    """done.json, likewise."""

    seconds: float = 0
    cpu_seconds: float = 0
    peak_memory: Score = 0
    outputs_read: float = 0
    outputs_computed: float = 0


class Detail(msgspec.Struct):
    """What is behind the scores of a group: see `common.domain.Evaluation`."""

    figures: dict[str, dict[str, Score]]
    curves: dict[str, list[Score]] = {}
    answers: dict[str, dict[str, float]] = {}


class VerdictEntry(msgspec.Struct):
    """A verdict of proof.json, as far as it must be there."""

    headline: str
    text: str


class ProofFile(msgspec.Struct):
    """proof.json, likewise."""

    verdicts: list[VerdictEntry]
    figures: list[dict[str, Any]]
    budget: dict[str, Any]
    forgotten: list[str]


class PhaseEntry(msgspec.Struct):
    """A phase as a run carried it out; records from before the last three existed lack them."""

    index: int
    action: Literal["learn", "forget"]
    groups: list[str]
    target: list[str]
    keep: list[str]
    gone: list[str] = []
    unknown: list[str] = []
    later: list[str] = []


class Counts(msgspec.Struct):
    """Values of a model."""

    trainable: int
    total: Annotated[int, msgspec.Meta(ge=1)]


class Settings(msgspec.Struct):
    """What config.json compares, besides the plan."""

    train: dict[str, Any] = {}
    data: dict[str, Any] = {}


class Config(msgspec.Struct):
    """config.json, beyond what any command needs of it."""

    identity: Settings
    phases: list[PhaseEntry] = []
    parameters: Counts | None = None
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    command: str | None = None
    titles: dict[str, str] = {}

    def __post_init__(self) -> None:
        if [phase.index for phase in self.phases] != list(range(1, len(self.phases) + 1)):
            raise ValueError("the phases are not in order")


@contextmanager
def consistent(where: str) -> Iterator[None]:
    """Inside, records are put together: makes one line of what does not fit, such as a group that another file lacks."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"the records of {where} do not fit together ({type(error).__name__}: {first_line(error)}); the commands of their "
            "runs write them again."
        ) from None
