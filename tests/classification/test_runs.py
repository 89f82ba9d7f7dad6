"""The sweeps behind the tables: which methods they run, and that every flag is one that the method has."""

from pathlib import Path

import pytest

from common import methods
from common.config import Parser
from common.settings import settings_from, settings_parser
from common.sweep.files import merged
from common.sweep.rows import read_sweep

ROOT = Path(__file__).parents[2]
FILES = sorted(p for place in ("image-classification", "object-detection", "semantic-segmentation")
               for p in (ROOT / place / "runs").glob("*.yaml") if p.stem not in ("methods", "photos25"))  # fmt: skip
GIVEN = {"images": "images", "data": "data", "weights": "weights.pth"}
# amnesiac unlearns what it learned itself, and leaves a pretrained class as it is (see unlearning.yaml); the other two
# were tuned elsewhere and stand in tables of their own (guards.yaml, proof.yaml).
APART = ("amnesiac", "mask_replay", "disperse")


def sweep(path):
    wanted = merged(path).get("set", {})
    return read_sweep(path, "", {name: value for name, value in GIVEN.items() if name in wanted}, [])


def value(words, name):
    return words[len(words) - 1 - words[::-1].index(name) + 1]


@pytest.mark.parametrize("name", ["digits", "photos", "faces"])
def test_a_method_is_left_out_of_the_tables_by_name_only(name):
    rows = sweep(ROOT / "image-classification" / "runs" / f"{name}.yaml").rows
    assert {value(row.words, "--method") for row in rows} == set(methods.available()) - set(APART)
    assert {value(row.words, "--seed") for row in rows} == {"0", "1", "2"}
    assert all(value(row.words, "--method") == row.label.split("-")[1] for row in rows)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.parent.name}/{p.stem}")
def test_every_flag_of_a_row_is_one_that_its_method_has(path):
    """Flags of the domains (images, models) are left to the domains' own tests."""
    for row in sweep(path).rows:
        method = value(row.words, "--method") if "--method" in row.words else "gs_lora"
        own = {option for action in parser(method)._actions for option in action.option_strings}
        other = {
            option
            for name in methods.available()
            for action in parser(name)._actions
            for option in action.option_strings
        }
        assert not [word for word in row.words if word in other - own], row.name
        flags = vars(parser(method).parse_known_args(list(row.words[1:]))[0])
        assert settings_from((), flags).train.method == method


def parser(method):
    if method not in parsers:
        parsers[method] = settings_parser("swap.py", "", (), ["--method", method])
    return parsers[method]


parsers: dict[str, Parser] = {}


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.parent.name}/{p.stem}")
def test_a_base_model_is_made_where_rows_look_for_it(path):
    found = sweep(path)
    for row in found.rows if found.prepare else ():
        assert value(row.words, "--checkpoint") == str(value(found.prepare[0].words, "--output-dir")), row.name
