"""The table over many runs: mean and standard deviation over seeds, as text cells for Markdown and for the page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.report.runs import RunRecord, forgetting

NONE = "–"
FOOTNOTE = (
    "Scores are before → after the run. drop is how far the forgotten classes fell. H is the harmonic mean of drop and "
    "the score of all classes to be known; the drop is measured from the pretrained model, or (phase) from the model "
    "that the forget phase began with. ± is the sample standard deviation over seeds."
)
SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class Table:
    """Runs that are scored alike: one row of text cells per set of runs that differ only in the seed."""

    metric_label: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    sets: Sequence[Sequence[RunRecord]]


def seed_sets(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """The runs, those that differ only in the seed together; an unfinished run stays apart from finished ones."""
    sets: dict[str, list[RunRecord]] = {}
    for run in runs:
        key = json.dumps([run.finished, run.metric_label, _seedless(run.identity)], sort_keys=True, default=str)
        sets.setdefault(key, []).append(run)
    return list(sets.values())


def _seedless(value: Any) -> Any:
    if isinstance(value, Mapping):
        # "base": the checksum of a base model that was itself trained once per seed
        return {k: _seedless(v) for k, v in value.items() if k not in ("seed", "base")}
    return [_seedless(v) for v in value] if isinstance(value, list) else value


def mean_std(values: Sequence[float], digits: int = 1) -> str:
    """'95.1 ± 0.4', the mean and the sample standard deviation (n - 1); one value alone has no ±."""
    if not values:
        return NONE
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def tables(runs: Sequence[RunRecord]) -> list[Table]:
    """One table per metric, in the order in which the metrics first appear."""
    result = []
    for metric in dict.fromkeys(run.metric_label for run in runs):
        sets = seed_sets([run for run in runs if run.metric_label == metric])
        groups = list(dict.fromkeys(g for members in sets for g in members[0].groups))
        names = labels(sets)
        header = ["run", "seeds", *groups, "drop", "H", "H (phase)", "trainable", "time", "peak memory"]
        rows = [[name, *_cells(members, groups)] for name, members in zip(names, sets, strict=True)]
        result.append(Table(metric, header, rows, sets))
    return result


def _cells(runs: Sequence[RunRecord], groups: Sequence[str]) -> list[str]:
    def of(read: Callable[[RunRecord], float | None]) -> list[float]:
        return [value for value in map(read, runs) if value is not None]

    def figure(name: str) -> list[float]:
        states = [forgetting(run, len(run.moments) - 1) for run in runs]
        return [getattr(state, name) for state in states if state is not None]

    scores = []
    for group in groups:
        before = [r.moments[0].scores[group] for r in runs if r.moments and group in r.moments[0].scores]
        after = [r.moments[-1].scores[group] for r in runs if r.moments[1:] and group in r.moments[-1].scores]
        scores.append(f"{mean_std(before)} → {mean_std(after)}" if before or after else NONE)
    trainable = of(lambda run: run.config.get("parameters", {}).get("trainable"))
    return [
        ", ".join(str(run.train.get("seed", "?")) for run in runs),
        *scores,
        *(mean_std(figure(name)) for name in ("drop_pretrained", "h_pretrained", "h_phase_start")),
        f"{trainable[0]:,}" if trainable else NONE,
        duration(statistics.fmean(times)) if (times := of(lambda run: (run.done or {}).get("seconds"))) else NONE,
        memory(max(peaks)) if (peaks := of(lambda run: (run.done or {}).get("peak_memory"))) else NONE,
    ]


def labels(sets: Sequence[Sequence[RunRecord]]) -> list[str]:
    """A name for each row: plan, method, and the settings in which rows of the same plan and method differ."""
    flat = [_flat(members[0].identity) for members in sets]
    names = []
    for members, own in zip(sets, flat, strict=True):
        run = members[0]
        rivals = [f for m, f in zip(sets, flat, strict=True) if (m[0].plan, m[0].method) == (run.plan, run.method)]
        keys = [k for k in own if any(f.get(k) != own[k] for f in rivals)]
        parts = [f"{k.rpartition('.')[2]} {own[k]}" for k in keys[:SHOWN_DIFFERENCES]]
        parts += ["…"] if len(keys) > SHOWN_DIFFERENCES else []
        parts += [] if run.finished else ["unfinished"]
        names.append(" · ".join(filter(None, [run.plan, run.method, ", ".join(parts)])))
    twice = {n for n in names if names.count(n) > 1}
    return [f"{n} · {s[0].name}" if n in twice else n for n, s in zip(names, sets, strict=True)]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> plain setting; seeds, lists and image counts left out."""
    if isinstance(value, Mapping):
        items = [(k, v) for k, v in value.items() if k not in ("seed", "images")]
        return {a: b for k, v in items for a, b in _flat(v, f"{key}.{k}" if key else str(k)).items()}
    return {} if isinstance(value, list) else {key: value}


def markdown(runs: Sequence[RunRecord]) -> str:
    """Every table as Markdown, with its metric above and the meaning of the columns below."""
    parts = []
    for table in tables(runs):
        rows = [table.header, ["---", "---", *["---:"] * (len(table.header) - 2)], *table.rows]
        parts.append(f"{table.metric_label}\n\n" + "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows))
    return "\n\n".join([*parts, FOOTNOTE]) + "\n"


def _escaped(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def duration(seconds: float) -> str:
    """'8.2 s', '3 min 43 s', '2 h 05 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(count: float) -> str:
    """Bytes as '944 MiB' or '3.1 GiB'."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
