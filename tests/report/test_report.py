"""The report: figures equal their definitions, the page loads nothing and survives any run folder."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pytest
from reported import FLTF, PIXEL, Addresses, make_run, page_of

from common import report
from common.errors import UserError
from common.evaluation.scores import drop, h_mean
from common.plan import Plan, make_plan
from common.record import METRICS, PROOF_MODELS, STEPS, write_json
from common.report import details
from common.report.__main__ import body
from common.report.runs import find_runs, forgetting, read_run, summary
from common.report.svg import Axes, Line, drawing, ticks
from common.report.table import markdown, mean_std, seed_sets, tables
from common.report.verdict import verdicts

CONTINUAL = Plan(
    "continual", {f"g{i}": tuple(f"class {i}.{j}" for j in range(20)) for i in range(5)},
    tuple(("forget", (f"g{i}",)) for i in range(4)), keep_until_forgotten=True,
)  # fmt: skip
INCREMENTAL = Plan(
    "unlearning", {"l1": ("a", "b"), "l2": ("c",), "l3": ("d",)},
    (("learn", ("l1",)), ("learn", ("l2",)), ("forget", ("l1",)), ("learn", ("l3",))),
)  # fmt: skip
CASES = {
    "fltf": {}, "fftl": {"plan": make_plan("fftl", ["x"], ["y"], ["z"])}, "continual": {"plan": CONTINUAL, "blocks": 24},
    "incremental": {"plan": INCREMENTAL}, "no adapter": {"adapter": False}, "no gallery": {"gallery": False},
    "unfinished": {"phases": 1, "done": False}, "only begun": {"phases": 0, "done": False}, "AP": {"label": "AP"},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_page_of_any_run_loads_nothing_and_its_charts_are_xml(case, tmp_path):
    page = page_of(make_run(tmp_path / "run", **CASES[case]))
    assert "http" not in page and "@import" not in page and "url(" not in page
    assert all(address.startswith("data:image/") for address in Addresses(page).loaded)
    assert "script" not in Addresses(page).tags
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    for chart in charts:
        ElementTree.fromstring(chart)
    assert charts or case == "only begun"
    assert not re.search(r"<svg[^>]*\sid=|NaN|\bnan\b|\binf\b", page)


def test_a_run_without_any_score_still_has_a_page(tmp_path):
    folder = make_run(tmp_path / "run", phases=0, done=False, gallery=False)
    (folder / METRICS).write_text("")
    (folder / STEPS).unlink()
    assert "stopped before its first scores" in page_of(folder)


def test_scores_that_are_not_numbers_are_left_out(tmp_path):
    folder = make_run(tmp_path / "run", done=False)
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for line in lines:
        if line.get("group") == "retain":
            line["score"], line["per_class"]["ant"] = float("nan"), None
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(folder)
    assert not re.search(r"\bnan\b", page.partition("</style>")[2])
    assert "ant" not in read_run(folder).moments[0].per_class


def test_letters_of_a_picture_never_read_like_an_address(tmp_path):
    folder = make_run(tmp_path / "run")
    text = (folder / "gallery.json").read_text().replace(PIXEL[0], PIXEL[0][:40] + "http" + PIXEL[0][40:])
    (folder / "gallery.json").write_text(text)
    page = page_of(folder)
    assert "http" not in page and "ht\ntp" in page


def test_names_are_escaped(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    assert "<b>hen</b>" not in page and "&lt;b&gt;hen&lt;/b&gt;" in page


def test_an_unfinished_run_says_how_far_it_came(tmp_path):
    folder = make_run(tmp_path / "run", phases=1, done=False)
    page, words = page_of(folder), {v.group: v for v in verdicts(read_run(folder))}
    assert "unfinished: 1 of 2 phases" in page and "step 20 of phase 1" in page
    assert words["learn"].word == "Learned" and words["forget"].word == "To be forgotten"
    assert "unfinished" in markdown([read_run(folder)])


def test_scores_on_the_way_do_not_end_a_phase(tmp_path):
    folder = make_run(tmp_path / "run", done=False)
    lines = (folder / METRICS).read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if '"phase": 2' in line and '"epoch": 1' in line)
    (folder / METRICS).write_text("\n".join(lines[: last + 1]) + "\n")
    assert [m.index for m in read_run(folder).moments] == [0, 1]


def test_runs_that_differ_only_in_the_seed_are_averaged(tmp_path):
    folders = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in range(3)]
    other = make_run(tmp_path / "longer", seed=0, batch_size=7)
    runs = find_runs([tmp_path])
    assert sorted(map(len, seed_sets(runs))) == [1, 3]
    (table,) = tables(runs)
    row = next(r for r, s in zip(table.rows, table.sets, strict=True) if len(s) == 3)
    for group in FLTF.groups:
        before, after = ([read_run(f).moments[i].scores[group] for f in folders] for i in (0, -1))
        expected = " → ".join(f"{numpy.mean(v):.1f} ± {numpy.std(v, ddof=1):.1f}" for v in (before, after))
        assert row[table.header.index(group)] == expected
    h = [forgetting(read_run(f), 2).h_pretrained for f in folders]
    assert row[table.header.index("H")] == f"{numpy.mean(h):.1f} ± {numpy.std(h, ddof=1):.1f}"
    assert row[table.header.index("seeds")] == "0, 1, 2"
    assert any("batch_size 7" in r[0] for r in table.rows) and other.is_dir()


def test_one_value_has_no_deviation():
    assert mean_std([93.26]) == "93.3" and mean_std([]) == "–" and mean_std([1.0, 2.0]) == "1.5 ± 0.7"


def test_markdown_rows_have_the_header_s_number_of_cells(tmp_path):
    make_run(tmp_path / "a", Plan("a|b", FLTF.groups, FLTF.steps))
    make_run(tmp_path / "b", CONTINUAL)
    rows = [line for line in markdown(find_runs([tmp_path])).splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_runs_of_different_metrics_have_tables_of_their_own(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", label="AP")
    assert [t.metric_label for t in tables(find_runs([tmp_path]))] == ["top-1 accuracy (%)", "AP"]
    assert "Compared by AP" in page_of(tmp_path / "a", tmp_path / "b")


def test_a_drawing_is_one_file_whose_curves_lie_where_the_numbers_are():
    rising, falling = Line("up & <down>", 0, [(0, 0), (1, 1)]), Line("b", 120, [(0, 1), (0.5, None), (1, 0)])
    axes = Axes("x", "y", (0, 1), [(0, 1, "group")], width=400)
    root = ElementTree.fromstring(drawing([([rising, falling], axes), ([falling], axes)]))
    svg = "{http://www.w3.org/2000/svg}"
    paths = [p for p in root.iter(f"{svg}path") if p.get("class") == "line"]
    assert root.get("width") == "800" and paths[0].get("style") == "stroke:#ae2929"
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in re.findall(r"[ML]([\d. ]+)", paths[0].get("d")))
    assert x0 < x1 and y0 > y1  # pixels count downwards
    assert paths[1].get("d") == f"M{x0} {y1}M{x1} {y0}" == paths[2].get("d")
    assert [g[0].text for g in root.iter(f"{svg}g") if g.get("class") == "name"] == ["up & <down>", "b", "b"]


@pytest.mark.parametrize("plan", [FLTF, CONTINUAL], ids=lambda p: p.name)
def test_the_recorded_phases_are_those_of_the_plan(plan, tmp_path):
    run = read_run(make_run(tmp_path / "run", plan))
    assert run.phases == plan.phases
    assert [m.title for m in run.moments] == ["before", *(p.title for p in plan.phases)]


def test_h_mean_is_the_harmonic_mean_of_what_is_known_and_the_drop(tmp_path):
    run = read_run(make_run(tmp_path / "run", CONTINUAL))
    history = [m.scores for m in run.moments]
    assert forgetting(run, 0) is None
    for index in range(1, 5):
        kept = [f"g{i}" for i in range(5) if i >= index]  # not yet asked for, or never
        retain = sum(history[index][g] for g in kept) / len(kept)
        target, found = f"g{index - 1}", forgetting(run, index)
        falls = [drop(history[start][target], history[index][target]) for start in (0, index - 1)]
        assert [found.drop_pretrained, found.drop_phase_start] == pytest.approx(falls)
        assert [found.h_pretrained, found.h_phase_start] == pytest.approx([h_mean(retain, d) for d in falls])


@pytest.mark.parametrize("before", ["pretrained", "phase_start"])
def test_h_mean_with_one_retained_group_equals_the_published_definition(before, tmp_path):
    run = read_run(make_run(tmp_path / "run", make_plan("fftl", ["x"], ["y"], ["z"])))
    start, end = run.moments[0].scores, run.moments[1].scores
    expected = h_mean(end["retain"], drop(start["forget"], end["forget"]))
    assert getattr(forgetting(run, 1), f"h_{before}") == pytest.approx(expected)


def test_a_group_learned_and_then_unlearned_is_judged_by_what_it_had_reached(tmp_path):
    words = {v.group: v.word for v in verdicts(read_run(make_run(tmp_path / "run", INCREMENTAL)))}
    assert words == {"l1": "Forgot", "l2": "Learned", "l3": "Learned"}


def test_pictures_that_differ_are_shown_side_by_side_and_equal_ones_once(tmp_path):
    folder = make_run(tmp_path / "run")
    assert page_of(folder).count("<img") == 6
    gallery = json.loads((folder / "gallery.json").read_text())
    for item in gallery["2 forget"]:
        item["picture"] = PIXEL[1]
    write_json(folder / "gallery.json", gallery)
    assert page_of(folder).count("<img") == 12


def test_a_picture_of_two_groups_is_answered_once_at_each_moment(tmp_path):
    folder = make_run(tmp_path / "run")
    once = page_of(folder)
    gallery = json.loads((folder / "gallery.json").read_text())
    write_json(folder / "gallery.json", {moment: [*items, items[0]] for moment, items in gallery.items()})
    assert page_of(folder) == once


def test_a_comparison_joins_the_answers_of_runs_with_one_start(tmp_path):
    folders = [make_run(tmp_path / n, make_plan(n, ["x"], ["y"], ["z"])) for n in ("fltf", "fftl")]
    page = page_of(*folders)
    assert "Test pictures, before and after each run" in page and page.count('class="run"') == 2
    assert report.write(folders, tmp_path / "out" / "report.html", "Both").read_text().count("<h1>Both</h1>") == 1


def with_details(folder: Path, phases: int = 2, many: int = 0) -> Path:
    """The run with figures and curves behind its scores, as a domain may give them; `many` further classes."""
    classes = {group: [*names, *(f"{group}{i}" for i in range(many))] for group, names in FLTF.groups.items()}
    found = {"axes": ["recall", "precision"]}
    for index in range(phases + 1):
        found[str(index)] = {
            group: {"figures": {"AP50": {"total": 10.0 * index, **dict.fromkeys(names, 10.0 * index + 1)}},
                    "curves": {name: [1.0, 0.5, 0.1 * index * k] for k, name in enumerate(names)}}
            for group, names in classes.items()
        }  # fmt: skip
    write_json(folder / "details.json", found)
    return folder


def test_figures_of_each_class_stand_in_a_table_beside_the_score(tmp_path):
    run = read_run(with_details(make_run(tmp_path / "run")))
    table = details.figures(run)
    assert table["names"] == ["top-1 accuracy (%)", "AP50"]
    assert [part["group"] for part in table["groups"]] == list(FLTF.groups)
    forget = table["groups"][1]
    first, last = run.moments[0], run.moments[-1]
    assert forget["total"] == [f"{first.scores['forget']:.1f} → {last.scores['forget']:.1f}", "0.0 → 20.0"]
    assert forget["rows"][0] == ("cat", [f"{first.per_class['cat']:.1f} → {last.per_class['cat']:.1f}", "1.0 → 21.0"])


def test_a_figure_of_the_group_only_is_a_dash_for_its_classes(tmp_path):
    folder = with_details(make_run(tmp_path / "run"))
    found = json.loads((folder / "details.json").read_text())
    for index in ("0", "1", "2"):
        found[index]["forget"]["figures"]["pACC"] = {"total": 50.0}
    write_json(folder / "details.json", found)
    forget = details.figures(read_run(folder))["groups"][1]
    assert forget["total"][-1] == "50.0 → 50.0" and {cells[-1] for _, cells in forget["rows"]} == {details.NONE}
    assert summary(read_run(folder))["moments"][1]["figures"]["forget"] == {"AP50": 10.0, "pACC": 50.0}


def test_curves_of_each_class_are_drawn_before_and_after_those_that_changed_most(tmp_path):
    run = read_run(with_details(make_run(tmp_path / "run"), many=20))
    plots = details.curves(run)
    assert [plot.title.partition(":")[0] for plot in plots] == list(FLTF.groups)
    for plot, names in zip(plots, FLTF.groups.values(), strict=True):
        shown = [name for name, _, _ in plot.legend]
        left_out = len(names) + 20 - len(shown)
        assert len(shown) == details.SHOWN and f"{left_out} more classes" in plot.title
        assert plot.svg.count('class="line"') == 2 * len(shown)
        assert plot.svg.count("stroke-dasharray") == len(shown)  # before
        group = plot.title.partition(":")[0]
        assert shown == [f"{group}{i}" for i in range(20)][-details.SHOWN :]  # k is the change


def test_a_page_with_details_loads_nothing_and_one_without_has_no_empty_section(tmp_path):
    plain = page_of(make_run(tmp_path / "plain"))
    page = page_of(with_details(make_run(tmp_path / "run")))
    assert "Precision over recall" in page and "Per class in figures" in page and "http" not in page
    assert "Per class in figures" not in plain and "dashed before" not in plain
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S):
        ElementTree.fromstring(svg)
    begun = with_details(make_run(tmp_path / "begun", phases=0, done=False), phases=0)
    assert 'stroke-dasharray="3 4"' in page_of(begun)  # one moment alone


def test_details_that_lack_a_moment_are_not_shown(tmp_path):
    assert read_run(with_details(make_run(tmp_path / "run"), phases=1)).details == []


def test_models_that_a_proof_trained_beside_a_base_are_no_rows(tmp_path):
    base = make_run(tmp_path / "base")
    reference = make_run(base / PROOF_MODELS / "key" / "seed1", seed=1)
    make_run(tmp_path / PROOF_MODELS / "key" / "seed1", seed=1)  # where the base is no run: beside the proved one
    assert [run.folder for run in find_runs([tmp_path])] == [base]
    assert [run.folder for run in find_runs([reference])] == [reference]  # unless they are asked for


def test_what_is_no_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run in"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(UserError, match="is no folder"):
        find_runs([tmp_path / "missing"])
    with pytest.raises(UserError, match="no config.json"):
        report.write([tmp_path / "empty"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_command_prints_the_table_and_writes_the_page(tmp_path, capsys):
    make_run(tmp_path / "runs" / "a")
    assert body([str(tmp_path / "runs"), str(tmp_path / "runs" / "a"), "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert out.count("fltf · gs_lora") == 1 and "<h1>" in (tmp_path / "page.html").read_text()


def test_command_explains_itself_and_fails_in_one_line(tmp_path, monkeypatch, capsys):
    def code(argument):
        monkeypatch.setattr(sys, "argv", ["report", argument])
        monkeypatch.delitem(sys.modules, "common.report.__main__", raising=False)
        with pytest.raises(SystemExit) as end:
            runpy.run_module("common.report", run_name="__main__")
        return end.value.code

    assert code("--help") == 0
    told = capsys.readouterr().out
    assert "mean ± standard deviation" in told and "--html" in told
    assert code(str(tmp_path)) == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("low, high", [(0, 100), (0, 1), (-3, 7), (0, 1e-4), (5, 12345)])
def test_ticks_are_evenly_spaced_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7 and low <= found[0] and found[-1] <= high * (1 + 1e-9)
    numpy.testing.assert_allclose(numpy.diff(found), found[1] - found[0])


def test_importing_the_report_imports_no_plotting_library():
    code = "import sys, common.report; print([m for m in ('matplotlib', 'jinja2', 'torch') if m in sys.modules])"
    root = Path(report.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_chosen_columns_are_measures_with_their_spread(tmp_path, capsys):
    """Forgotten 4 and 0, retained 60 and 58 against Retrain's 1 and 62: the gap is (|2 - 1| + |59 - 62|) / 2, ToW
    0.99 x 0.97."""
    plan = make_plan("forget", [], ["cat"], ["ant"])
    for name, seed, forgotten, retained, height in (
        ("a0", 0, 4, 60, 50),
        ("a1", 1, 0, 58, 54),
        ("retrain", 0, 1, 62, 61),
    ):
        folder = make_run(tmp_path / name, plan, seed, method=name if name == "retrain" else "finetune")
        lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        for line in lines:
            if line["phase"] == 1 and "score" in line:
                line["score"] = {"forget": forgotten, "retain": retained}[line["group"]]
        lines.append({"phase": 1, "measures": {"h_mean": height}})
        (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert body([str(tmp_path), "--columns", "forgotten,retained,h_mean,gap,tow,trains,learned,forget,last"]) == 0
    header, _, best, other = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:6]
    )
    assert header == [
        "run",
        "seeds",
        "forgotten ↓",
        "retained ↑",
        "H ↑",
        "gap to Retrain ↓",
        "ToW ↑",
        "trains (%)",
        "forget",
    ]
    assert best[2:] == [
        "1.0",
        "62.0",
        "61.0",
        "0.0",
        "100.0",
        "2.0",
        "1.0",
    ]  # the highest H first; empty columns left out
    assert other[1:] == ["0, 1", "2.0 ± 2.8", "59.0 ± 1.4", "52.0 ± 2.8", "2.0", "96.0", "2.0 ± 0.0", "2.0 ± 2.8"]
    with pytest.raises(UserError, match="no column 'nonsense'; there are: learned, "):
        body([str(tmp_path), "--columns", "nonsense"])


def test_names_make_rows_of_runs(tmp_path):
    folders = [make_run(tmp_path / str(seed), seed=seed % 2, lr=0.1 + seed) for seed in range(3)]
    names = dict(zip(folders, ("x", "x", "y"), strict=True))
    assert [row[:2] for row in tables(list(map(read_run, folders)), ["learned"], names)[0].rows] == [
        ["x", "0, 1"],
        ["y", "0"],
    ]
