"""Building and loading: a missing compiler, a failed build and a stale library leave plain PyTorch in use, said once."""

import json
import logging
import runpy
import shutil
import sys

import pytest
import torch
from ms_deform_attn import __main__ as program
from ms_deform_attn import building, library, loader, ms_deform_attn, ms_deform_attn_reference, use_backend
from msda import build_once, case


@pytest.fixture(scope="module")
def kernel():
    """Loads the kernel before a test looks elsewhere: a process cannot load it from two folders."""
    build_once()


@pytest.fixture
def built():
    """The library in its own folder; named before `elsewhere`, or it would be built and loaded there a first time."""
    build_once()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """No library found yet, and an empty folder to build in."""
    monkeypatch.setattr(library, "folders", lambda: [tmp_path])
    monkeypatch.delenv("KS_BUILD_OP", raising=False)
    loader.forget()
    yield tmp_path
    loader.forget()


def test_without_a_build_plain_pytorch_runs_and_one_line_says_so(elsewhere, caplog):
    inputs = case()
    with caplog.at_level(logging.WARNING, "ms_deform_attn"):
        for _ in range(3):
            got = ms_deform_attn(*inputs)
    assert torch.equal(got, ms_deform_attn_reference(*inputs))
    assert len(caplog.records) == 1 and "make op" in caplog.text and "\n" not in caplog.records[0].getMessage()


def test_insisting_on_the_kernel_says_how_to_build_it(elsewhere):
    with use_backend("compiled"), pytest.raises(RuntimeError, match="not built. Run: make op"):
        ms_deform_attn(*case())
    with pytest.raises(ValueError, match="`name`"), use_backend("fast"):
        pass


@pytest.mark.parametrize("entry", ["torch", "machine", "sources"])
def test_a_stale_library_is_not_loaded(built, elsewhere, entry):
    for file in (library.PACKAGE / "lib").glob("cpu.*"):
        shutil.copy(file, elsewhere)
    if not (elsewhere / "cpu.so").exists():
        pytest.skip("the library lies in the user's cache")
    assert library.find("cpu") == (elsewhere / "cpu.so", "")
    manifest = json.loads((elsewhere / "cpu.json").read_text())
    (elsewhere / "cpu.json").write_text(json.dumps(manifest | {entry: "1.0"}))
    path, reason = library.find("cpu")
    assert path is None and "stale" in reason and f"{entry} was 1.0" in reason
    (elsewhere / "cpu.json").write_text("{")
    assert "unreadable" in library.find("cpu")[1]


def test_a_library_that_does_not_load_is_reported(elsewhere, caplog):
    (elsewhere / "cpu.so").write_bytes(b"no library")
    (elsewhere / "cpu.json").write_text(json.dumps(library.key("cpu")))
    ms_deform_attn(*case())
    assert "does not load" in caplog.text


def test_a_missing_compiler_is_named(elsewhere, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(elsewhere))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(building.BuildError, match="no C\\+\\+ compiler found; install"):
        building.build("cpu")
    monkeypatch.setenv("KS_BUILD_OP", "1")
    ms_deform_attn(*case())
    assert "the build failed: no C++ compiler" in caplog.text


def test_a_failing_compiler_is_quoted_and_leaves_nothing_behind(elsewhere, monkeypatch, capsys):
    building.compiler()
    fake = elsewhere / "c++"
    fake.write_text("#!/bin/sh\necho error: out of cheese >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(building.BuildError, match="out of cheese"):
        building.build("cpu")
    assert {path.name for path in elsewhere.iterdir()} == {"c++", "cpu.lock"}
    assert not program.build_all()
    assert "plain PyTorch will be used" in capsys.readouterr().err


def test_the_script_succeeds_even_if_the_build_fails(elsewhere, monkeypatch, capsys):
    for name, value in (("CXX", "/bin/false"), ("PATH", "/nowhere")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["build.py", "--force"])
    monkeypatch.setattr(sys, "path", sys.path[:])
    runpy.run_path(str(library.PACKAGE.parent / "build.py"), run_name="__main__")
    assert "plain PyTorch will be used" in capsys.readouterr().err


def test_the_report_tells_what_is_built(capsys):
    build_once()
    assert program.main([]) == 0
    told = capsys.readouterr().out
    assert "plain" in told and "self-test" in told and "good" in told and torch.__version__ in told
