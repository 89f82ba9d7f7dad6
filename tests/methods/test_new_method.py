"""A method is one file: the template works as it is written, and nothing else has to be edited."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from blobs import REST, pretrained, trainer

from common import methods
from common.config import Parser, add_flags
from common.errors import UserError
from common.methods.__main__ import main, new
from common.methods._base import Method
from common.plan import make_plan

FOLDER = Path(methods.__file__).parent


def loaded(path, monkeypatch):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.METHOD


def test_a_new_method_is_one_file_that_runs_at_once(tmp_path, monkeypatch):
    kind = loaded(new("my_method", tmp_path), monkeypatch)
    parser = Parser(prog="swap.py")
    add_flags(parser, kind.Config)
    assert "--my-method-weight" in parser.format_help()
    monkeypatch.setattr(methods, "load", lambda name: kind)
    t = trainer(pretrained(4), make_plan("fltf", ["c4"], ["c0"], REST), "my_method", tmp_path / "run")
    scores = {line["group"]: line["score"] for line in t.swap() if "score" in line}
    assert scores["learn"] > 50


@pytest.mark.parametrize("name", ["My", "two words", "_hidden", "1st", "a-b"])
def test_a_name_that_is_no_module_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="small letters"):
        new(name, tmp_path)


def test_a_taken_name_is_refused(tmp_path):
    new("mine", tmp_path)
    with pytest.raises(UserError, match="already"):
        new("mine", tmp_path)


def test_the_list_says_of_every_method_what_a_reader_must_know(capsys):
    main([])
    listed = capsys.readouterr().out.split("\n\n")
    assert [entry.split()[0] for entry in listed] == methods.available()
    for entry in listed:
        assert [line.split()[0] for line in entry.splitlines()[1:]] == ["paper", "trains", "needs", "checked"], entry
    entries = dict(zip(methods.available(), listed, strict=True))
    assert "arXiv:2403.11530" in entries["gs_lora"] and "trains   adapter" in entries["gs_lora"]
    assert "equations compared with the authors' code" in entries["scrub"]
    assert "needs    teacher; no keep data" in entries["delete"] and "no published code" in entries["finetune"]
    with pytest.raises(UserError, match="usage"):
        main(["old"])


@pytest.mark.parametrize("name", methods.available())
def test_every_method_states_its_equation(name):
    kind = methods.load(name)
    assert issubclass(kind, Method) and kind.__doc__


def test_every_row_of_the_readme_is_a_method():
    rows = re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text().partition("## ")[0], re.MULTILINE)
    assert len(rows) >= 28 and set(rows) <= set(methods.available())


def test_no_method_is_over_long():
    for path in FOLDER.glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        assert ast.get_docstring(ast.parse(text)), path
