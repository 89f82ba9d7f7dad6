"""What the page says of a run in pictures and words: where answers went, curves of a sample, losses, trade-offs."""

import json
import re

import pytest
from reported import FLTF, Addresses, make_run, page_of

from common.plan import make_plan, pretrain_plan
from common.record import DETAILS, METRICS, NOTHING, write_json
from common.report import flow, plots, proof, words
from common.report.runs import read_run
from common.report.sections import LOST, peaks
from common.report.verdict import verdicts

KEPT = {name: {name: 1.0} for members in FLTF.groups.values() for name in members}
MOVED = KEPT | {"cat": {"owl": 0.9, "dog": 0.08}, "dog": {NOTHING: 0.6, "dog": 0.4}}


def with_answers(folder, after=MOVED, before=KEPT, plan=FLTF):
    """The run with answers of all its classes before and after each phase."""
    found = {"axes": ["", ""]}
    for index in range(len(plan.steps) + 1):
        answers = after if index else before
        found[str(index)] = {
            group: {"figures": {}, "curves": {}, "answers": {name: answers[name] for name in members}}
            for group, members in plan.groups.items()
        }
    write_json(folder / DETAILS, found)
    return folder


def with_sample(folder):
    """The run with scores of a sample, nine in each phase."""
    lines = (folder / METRICS).read_text()
    for phase in (1, 2):
        for step in range(0, 21, 5):
            told = dict.fromkeys(FLTF.groups, 10.0 * phase + step)
            lines += json.dumps({"phase": phase, "action": "x", "step": step, "sample": told, "items": 8}) + "\n"
    (folder / METRICS).write_text(lines)
    return folder


def test_a_class_that_moved_onto_another_is_told_forgotten_ones_first(tmp_path):
    run = read_run(with_answers(make_run(tmp_path / "run")))
    assert [tuple(move) for move in flow.moves(run)] == [("cat", "owl", 0.0, 0.9), ("dog", NOTHING, 0.0, 0.6)]
    told = flow.sentences(run)
    assert told[0] == "90 % of the test items of cat are now called owl (before: 0 %)." and "no prediction" in told[1]
    page = page_of(tmp_path / "run")
    assert told[0] in page and "90 % of the test items of cat are now called owl: such a class" in page
    assert {v.group: v.warning for v in verdicts(run)}["forget"].startswith("90 % of the test items of cat")


def test_answers_as_of_a_base_without_the_class_are_no_move(tmp_path):
    folder = with_answers(make_run(tmp_path / "run"))
    for distance, expected in (
        (0.2, "much as the base model answers without that class"),
        (0.4, "more than the base model would without that class"),
        (0.8, "moved onto another one"),
    ):
        spill = {"cat": {"answers": {"owl": 0.9}, "confidence": 0.5, "distance": distance}}
        with (folder / METRICS).open("a") as file:
            file.write(json.dumps({"phase": 2, "action": "forget", "spill": spill}) + "\n")
        lines = (folder / METRICS).read_text().splitlines(keepends=True)
        run = read_run(folder)
        assert expected in words.paragraph(run)
        warning = {v.group: v.warning for v in verdicts(run)}["forget"]
        assert ("with confidence 0.50" in warning) == (distance > 0.5) and "of cat are now" not in warning
        (folder / METRICS).write_text("".join(lines[:-1]))


def test_answers_that_were_so_before_have_not_moved(tmp_path):
    run = read_run(with_answers(make_run(tmp_path / "run"), before=MOVED))
    assert flow.moves(run) == [] and "No forgotten class went to one other class" in words.paragraph(run)
    assert flow.moves(read_run(make_run(tmp_path / "older"))) == []  # nothing was recorded
    assert flow.flow(read_run(tmp_path / "older"), {}) is None


def test_ribbons_carry_every_class_from_left_to_right():
    rows, nodes, ribbons = flow._layout(MOVED, list(KEPT), dict.fromkeys(KEPT, 0.0), (100.0, 300.0))
    assert [row.name for row in rows] == list(MOVED)
    assert all(row.used == pytest.approx(flow.UNIT) for row in rows)
    assert all(node.used == pytest.approx(node.height, abs=flow.UNIT * flow.THIN * len(rows)) for node in nodes)
    height = {node.name: node.height / flow.UNIT for node in nodes}
    assert height["owl"] == pytest.approx(1.9) and height[NOTHING] == pytest.approx(0.6)
    assert height[flow.REST] == pytest.approx(0.02) and height["cat"] == 0
    assert [ribbon.right for ribbon in ribbons] == sorted((r.right for r in ribbons), reverse=True)  # wrong ones on top
    tops = [(node.y, node.y + node.height) for node in nodes]
    assert all(low < high for (_, low), (high, _) in zip(tops, tops[1:], strict=False))


def test_of_many_classes_those_that_moved_most_have_a_row(tmp_path):
    names = [f"class {i}" for i in range(60)]
    plan = make_plan("fltf", ["new"], names[:5], names[5:])
    own = {name: {name: 1.0} for name in ["new", *names]}
    after = own | {"class 3": {"new": 1.0}, "class 58": {"class 40": 0.7, "class 58": 0.3}}
    run = read_run(with_answers(make_run(tmp_path / "run", plan), after, own, plan))
    shown = flow._chosen(["new", *names], own, after)
    assert len(shown) == flow.SHOWN and {"class 3", "class 58"} <= set(shown)
    found = flow.flow(run, plots.hues(run))
    assert found["left_out"] == 61 - flow.SHOWN
    assert all("class 40" in svg or "Before" in title for title, svg in found["panels"])


def test_curves_join_the_scores_of_a_sample_and_nothing_else(tmp_path):
    plain = plots.scores(read_run(make_run(tmp_path / "plain", epochs=1)))
    (path,) = {
        p.count("L") for p in re.findall(r' d="(M[^"]*)"', plain.svg) if "class" not in p and p.count("M") > 1
    } or {0}
    sampled = plots.scores(read_run(with_sample(make_run(tmp_path / "run"))))
    assert "8 test pictures of each group" in sampled.note
    curves = [p for p in re.findall(r'class="line"[^>]* d="([^"]*)"', sampled.svg) if "L" in p]
    assert len(curves) == len(FLTF.groups) and all(c.count("M") == 2 and c.count("L") == 8 for c in curves)
    assert [name for name, *_ in sampled.legend] == list(FLTF.groups) and path == 0 or "L" not in plain.note


def test_no_run_betters_the_front_and_every_other_is_bettered():
    dots = [(0.0, 90.0), (5.0, 95.0), (5.0, 80.0), (20.0, 95.0), (30.0, 99.0), (2.0, 85.0)]
    corners = plots._front(dots)
    assert corners == [(0.0, 90.0), (5.0, 90.0), (5.0, 95.0), (30.0, 95.0), (30.0, 99.0)]
    on = [dot for dot in dots if not any(a <= dot[0] and b >= dot[1] and (a, b) != dot for a, b in dots)]
    assert on == [dot for dot in dots if dot in corners]


def test_a_comparison_has_a_dot_per_run_seeds_apart(tmp_path):
    folders = [make_run(tmp_path / f"{name}{seed}", make_plan(name, ["x"], ["y"], ["z"]), seed)
               for name in ("fltf", "fftl") for seed in (0, 1)]  # fmt: skip
    page = page_of(*folders)
    charts = re.findall(r'<svg class="chart"[^>]*against forgotten.*?</svg>', page, flags=re.S)
    assert len(charts) == 2 and all(chart.count("<circle") == 4 for chart in charts)
    assert "<b>fltf</b>: learn x, then forget y." in page and "2 knowledge swaps compared" in page


def test_classes_below_their_best_are_listed_worst_first(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    rows = peaks(run)
    for row in rows:
        history = [moment.per_class[row["name"]] for moment in run.moments]
        assert row["lost"] == pytest.approx(max(history) - history[-1]) and row["lost"] >= LOST
        assert row["group"] != "forget"
    assert [row["lost"] for row in rows] == sorted((row["lost"] for row in rows), reverse=True)


def test_the_title_says_what_was_asked(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert words.title(run) == "Knowledge swapping: learn owl and <b>hen</b>, then forget cat and dog"
    text = words.paragraph(run)
    assert "to keep ant, bee and cow" in text and "What was to be learned rose from 0." in text and "seed 0" in text
    base = read_run(make_run(tmp_path / "base", pretrain_plan([f"c{i}" for i in range(9)])))
    assert words.title(base) == "A base model trained on 9 classes"
    assert words.paragraph(read_run(make_run(tmp_path / "begun", phases=0, done=False))) == ""


def test_codes_of_classes_are_told_with_what_they_stand_for(tmp_path):
    folder = make_run(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    assert "stand for" not in page_of(folder)
    (folder / "config.json").write_text(json.dumps(config | {"titles": {"owl": "tawny owl"}}))
    page = page_of(folder)
    assert "learn tawny owl (owl) and" in page and "stand for" in page


@pytest.mark.parametrize("count", [1, 2])
def test_headings_skip_no_level_and_regions_have_names(count, tmp_path):
    folders = [with_sample(with_answers(make_run(tmp_path / f"r{i}", seed=i, batch_size=9 + i))) for i in range(count)]
    page = page_of(*folders)
    levels = [int(tag[1]) for tag in Addresses(page).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert page.count("<h1") == 1 and 'class="scroll"' in page
    assert all('role="region" aria-label="' in tag for tag in re.findall(r'<div class="scroll"[^>]*>', page))


def test_a_proof_shows_what_each_model_calls_each_forgotten_class():
    def one(**counts):
        return {"answers": counts, "confidence": 0.5}

    answers = {"original": {"cat": one(cat=9), "dog": one(dog=3, owl=1)}, "result": {"cat": one(owl=9), "dog": None},
               "reference-1": {"cat": one(ant=4, bee=5), "dog": one(bee=1)}}  # fmt: skip
    (cat, first), (dog, second) = proof._called({"forgotten": ["cat", "dog", "eel"], "answers": answers})
    assert (cat, dog) == ("cat", "dog")
    assert "result called owl: 100 %" in first and "never saw 1 is called bee 56 %" in first
    assert "result" not in second and "original called owl: 25 %" in second


def test_a_share_of_counted_items_has_an_interval_and_other_scores_have_none(tmp_path):
    folder = make_run(tmp_path / "run")
    assert all(v.interval is None for v in verdicts(read_run(folder)))
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    lines = [line | ({"weight": 50} if "score" in line else {}) for line in lines]
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert all(v.interval is None for v in verdicts(read_run(folder)))
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | {"counted": True})
    for verdict in verdicts(read_run(folder)):
        low, high, n = verdict.interval
        assert (
            n == 50
            and 0 <= low <= verdict.path[-1][1] + 1
            and verdict.path[-1][1] - 1 <= high <= 100
            and high - low < 25
        )
    assert "], n 50</small>" in page_of(folder)


def test_the_name_of_what_is_left_fits_beside_its_band():
    svg = str(flow.picture({"a": {"b": 0.98, "c": 0.02}}, [], {}, "What"))
    (x,) = re.findall(rf'x="([\d.]+)"[^>]*>{flow.REST}<', svg)
    assert float(x) + flow.LETTER * len(flow.REST) <= flow.WIDTH
