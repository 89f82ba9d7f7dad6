"""The table over many runs: mean and standard deviation over seeds, as text cells for Markdown and for the page."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.report.columns import Column, chosen
from common.report.runs import RunRecord, forgetting

NONE = "–"
FOOTNOTE = (
    "Scores are before → after the run. drop is how far the forgotten classes fell. H is the harmonic mean of drop and "
    "the score of all classes to be known; the drop is measured from the pretrained model, or (phase) from the model "
    "that the forget phase began with. ± is the sample standard deviation over seeds."
)
SHOWN_DIFFERENCES = 3
Names = Mapping[Path, str]  # folder of a run -> what its row is called
NO_NAMES: Names = {}


@dataclass(frozen=True)
class Table:
    """Runs that are scored alike: one row of text cells per set of runs that differ only in the seed.

    values: where columns were asked for, what stands behind each of their cells.
    """

    metric_label: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    sets: Sequence[Sequence[RunRecord]]
    values: Sequence[Sequence[Sequence[float]]] = ()


def seed_sets(runs: Sequence[RunRecord], names: Names = NO_NAMES) -> list[list[RunRecord]]:
    """The runs, those that differ only in the seed together (or have one name); an unfinished run stays apart from
    finished ones."""
    sets: dict[str, list[RunRecord]] = {}
    for run in runs:
        own = names.get(run.folder) or _seedless(run.identity)
        key = json.dumps([run.finished, run.metric_label, own], sort_keys=True, default=str)
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


def tables(runs: Sequence[RunRecord], columns: Sequence[str] = (), names: Names = NO_NAMES) -> list[Table]:
    """One table per metric, in the order in which the metrics first appear.

    Args:
        columns: names of measures or groups in the place of the usual columns; with "h_mean" the best row comes first.
        names: of rows, in the place of plan, method and settings.

    Raises:
        UserError: unknown column.
    """
    result = []
    measures = chosen(columns, runs)
    for metric in dict.fromkeys(run.metric_label for run in runs):
        sets = seed_sets([run for run in runs if run.metric_label == metric], names)
        called = [names.get(members[0].folder, "") for members in sets]
        if not all(called):
            called = labels(sets)
        if measures:
            result.append(_measured(metric, measures, sets, called, runs))
            continue
        groups = list(dict.fromkeys(g for members in sets for g in members[0].groups))
        header = ["run", "seeds", *groups, "drop", "H", "H (phase)", "trainable", "time", "peak memory"]
        rows = [[name, *_cells(members, groups)] for name, members in zip(called, sets, strict=True)]
        result.append(Table(metric, header, rows, sets))
    return result


def _measured(
    metric: str,
    columns: Mapping[str, Column],
    sets: Sequence[Sequence[RunRecord]],
    names: Sequence[str],
    runs: Sequence[RunRecord],
) -> Table:
    """The table of chosen columns; one that is empty in every row is left out."""
    lines = []
    for name, members in zip(names, sets, strict=True):
        lines.append((name, members, [column.read(members, runs) for column in columns.values()]))
    if "h_mean" in columns:
        at = list(columns).index("h_mean")
        lines.sort(key=lambda line: -statistics.fmean(line[2][at] or [-1.0]))
    kept = [i for i in range(len(columns)) if any(values[i] for _, _, values in lines)]
    shown = [list(columns.values())[i] for i in kept]
    values = [[line[2][i] for i in kept] for line in lines]
    rows = [
        [name, _seeds(members), *(mean_std(v, column.digits) for v, column in zip(own, shown, strict=True))]
        for (name, members, _), own in zip(lines, values, strict=True)
    ]
    header = ["run", "seeds", *(column.heading for column in shown)]
    return Table(metric, header, rows, [members for _, members, _ in lines], values)


def _seeds(runs: Sequence[RunRecord]) -> str:
    return ", ".join(str(run.train.get("seed", "?")) for run in runs)


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
        _seeds(runs),
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
    """Dotted key -> plain setting; seeds, lists, image counts and the base's checksum left out."""
    if isinstance(value, Mapping):
        items = [(k, v) for k, v in value.items() if k not in ("seed", "images", "base")]
        return {a: b for k, v in items for a, b in _flat(v, f"{key}.{k}" if key else str(k)).items()}
    return {} if isinstance(value, list) else {key: value}


def markdown(runs: Sequence[RunRecord], columns: Sequence[str] = (), names: Names = NO_NAMES) -> str:
    """Every table as Markdown, with its metric above and the meaning of the columns below; see `tables`."""
    parts = []
    for table in tables(runs, columns, names):
        rows = [table.header, ["---", "---", *["---:"] * (len(table.header) - 2)], *table.rows]
        parts.append(f"{table.metric_label}\n\n" + "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows))
    return "\n\n".join([*parts, *([] if columns else [FOOTNOTE])]) + "\n"


def csv_text(table: Table) -> str:
    """A table of chosen columns as CSV: mean and sample standard deviation over seeds in columns of their own."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "seeds", *(f"{head}{end}" for head in table.header[2:] for end in ("", " (std)"))])
    for row, values in zip(table.rows, table.values, strict=True):
        pairs = [(statistics.fmean(v) if v else "", statistics.stdev(v) if len(v) > 1 else "") for v in values]
        writer.writerow([*row[:2], *(cell for pair in pairs for cell in pair)])
    return file.getvalue()


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
