"""The scripts behind the tables of the README: which methods they run, and what they make of figures."""

import sys
from pathlib import Path

import pytest

from common import methods

RUNS = Path(__file__).parent.parent / "image-classification" / "runs"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(RUNS), *sys.path])


def row(method, seed, forgotten, retained, h_mean):
    return {"method": method, "seed": seed, "forgotten": forgotten, "retained": retained, "h_mean": h_mean,
            "parameters": {"trainable": 1, "total": 100}, "extra_mib": 10.0, "cpu_seconds": 2.0}  # fmt: skip


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_new_method_is_in_the_tables_without_an_edit():
    from methods import APART, NAMES
    from methods_tuned import CHOSEN, GRIDS

    assert {name.partition("-")[0] for name in NAMES} == set(methods.available()) - set(APART)
    assert set(CHOSEN) == set(GRIDS) <= set(NAMES) and all(CHOSEN[name] in GRIDS[name] for name in CHOSEN)


def test_every_chosen_flag_is_one_that_the_method_has():
    from incremental import ROWS as LEARNED
    from methods_tuned import GRIDS, LASSO
    from unlearning import ROWS as UNLEARNED

    from common.settings import settings_from, settings_parser

    grids = GRIDS | {name: [own] for name, own in LASSO.items()}
    lines = [f"{name.partition('-')[0]} {own}" for name, grid in grids.items() for own in grid]
    for line in [*lines, *LEARNED.values(), *UNLEARNED.values()]:
        flags = ["--method", *line.split()]
        settings = settings_from((), vars(settings_parser("swap.py", "", (), flags).parse_args(flags)))
        assert settings.train.method == line.split()[0]


def test_the_table_puts_the_best_h_mean_first_and_measures_the_gap_to_retrain():
    from methods_table import markdown

    rows = [row("a", 0, 4.0, 60.0, 50.0), row("a", 1, 0.0, 58.0, 54.0), row("retrain", 0, 1.0, 62.0, 61.0)]
    best, other = map(cells, markdown(rows).splitlines()[2:])
    assert best[0] == "`retrain`" and best[5] == "0.0"
    assert other[:2] == ["`a`", "2"] and other[4] == "52.0 ± 2.8"
    assert other[5] == "2.0"  # (|2 - 1| + |59 - 62|) / 2
    assert other[6] == "1.0"  # % of the parameters
    assert (other[7], other[8]) == ("10", "2")
    costs = ("extra_mib", "cpu_seconds")
    free = [{key: value for key, value in one.items() if key not in costs} for one in rows[:1]]
    assert cells(markdown([*free, rows[1] | {"cpu_seconds": 5.0}]).splitlines()[2])[7:] == ["10", "5"]
    assert cells(markdown(free).splitlines()[2])[7:] == ["–", "–"]


def test_rows_keep_their_order_and_show_their_digits():
    from rows import markdown

    found = [{"row": name, "x": x, "y": 0.12345} for name, x in (("b", 1.0), ("a", 2.0), ("b", 3.0))]
    lines = markdown(found, {"x": ("x ↑", 1), "y": ("y ↓", 3)}).splitlines()
    assert lines[0] == "| | seeds | x ↑ | y ↓ |"
    assert [cells(line) for line in lines[2:]] == [["b", "2", "2.0 ± 1.4", "0.123 ± 0.000"], ["a", "1", "2.0", "0.123"]]
