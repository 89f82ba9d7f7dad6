"""Every import package is ours, imports go one way, and importing is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "common": ".",
    "ks_classification": "image-classification",
    "ks_detection": "object-detection",
    "ks_segmentation": "semantic-segmentation",
    "ms_deform_attn": "object-detection/ops",
}
ALLOWED = {
    "common": {"common"},
    "ms_deform_attn": {"ms_deform_attn"},
    "ks_classification": {"common", "ks_classification"},
    "ks_detection": {"common", "ks_detection", "ms_deform_attn"},
    "ks_segmentation": {"common", "ks_segmentation", "ms_deform_attn"},
}


def python(code, folder):
    """What `python -c code` prints, run in another folder."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_package_is_ours_from_any_folder(tmp_path):
    """A foreign package called `common` would otherwise be mixed with ours without an error."""
    code = f"import importlib, sys\nfor n in {list(FOLDERS)}: print(importlib.import_module(n).__file__)"
    for found, (name, place) in zip(python(code, tmp_path), FOLDERS.items(), strict=True):
        assert Path(found).resolve() == (ROOT / place / name / "__init__.py").resolve()


def test_imports_are_light(tmp_path):
    code = "import common, ks_classification, sys; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = set(python(code, tmp_path)[0].split())
    assert not loaded & {"matplotlib", "wandb", "transformers", "pycocotools", "sklearn", "tensorboard"}


def test_sweeps_start_without_torch(tmp_path):
    """It takes two seconds; what a sweep starts loads it."""
    assert python("import common.sweep.__main__, sys; print('torch' in sys.modules)", tmp_path) == ["False"]


def test_the_core_needs_no_vision_library(tmp_path):
    """The loop, its methods and its command line import nothing about images."""
    code = "import common.cli, sys; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = set(python(code, tmp_path)[0].split())
    assert not loaded & {"matplotlib", "wandb", "transformers", "torchvision", "timm", "PIL", "pycocotools"}


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_go_one_way(package):
    ours = set(FOLDERS)
    for path in (ROOT / FOLDERS[package] / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            used = {name.partition(".")[0] for name in names} & ours
            assert used <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {used - ALLOWED[package]}"


def test_one_file_starts_other_ranks_and_one_talks_to_them():
    for path in (ROOT / "common").rglob("*.py"):
        if path.name not in ("distributed.py", "launch.py"):
            assert "torch.distributed" not in path.read_text(), path


def test_the_loop_knows_no_domain_by_name():
    for path in (ROOT / "common").rglob("*.py"):
        text = path.read_text()
        assert "domain.name ==" not in text and "ks_" not in text.replace("blocks_", "").replace("tasks_", ""), path


def test_inner_packages_have_names_of_their_own():
    """Two folders with a package `models` collide in one process."""
    for place in FOLDERS.values():
        for init in (ROOT / place).glob("*/__init__.py"):
            assert init.parent.name in FOLDERS, init.parent
    assert not (ROOT / "tests" / "common").exists()  # it would hide the package
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_there_is_no_drawer_for_everything():
    assert not [p for p in ROOT.rglob("utils.py") if not {".venv", "build"} & set(p.relative_to(ROOT).parts)]
