"""The Python scripts of the READMEs run as they stand, with fewer steps."""

import re
from pathlib import Path

import pytest
from ks_classification.session import SESSION

from common import commands

ROOT = Path(__file__).parents[2]
BASE = ["--data", "digits", "--no-flip", "--classes", "0,1,2,3,4,5,8,9", "--img-size", "16", "--patch-size", "4",
        "--model-args", "embed_dim=64,depth=2,num_heads=4", "--lr", "2e-3", "--threads", "1", "--precision", "fp32",
        "--epochs", "8", "--no-report", "--gallery", "0", "--output-dir", "results/base"]  # fmt: skip


def script_of(domain):
    """The first Python block of a README, its runs cut to two steps of two items."""
    text = (ROOT / domain / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    assert "swap(" in code and "EXAMPLE" not in code
    code = re.sub(r"\b(epochs|steps|forget_steps)=\d+", lambda m: f"{m[1].replace('epochs', 'steps')}=2", code)
    few = "train=80, test=30" if domain == "semantic-segmentation" else 'counts={"train": 80, "test": 30}'
    code = code.replace("digit_scenes()", f"digit_scenes({few})")
    return code.replace('"object-detection/', f'"{ROOT}/object-detection/').replace(
        '"semantic-segmentation/', f'"{ROOT}/semantic-segmentation/'
    )


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["image-classification", "object-detection", "semantic-segmentation"])
def test_the_script_of_a_readme_runs(domain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if domain == "image-classification":
        assert commands.main(SESSION, "pretrain", BASE) == 0
    capsys.readouterr()
    namespace = {}
    exec(compile(script_of(domain), f"{domain}/README.md", "exec"), namespace)
    run, out = namespace["run"], capsys.readouterr().out
    assert set(run.scores) == {"learn", "forget", "retain"} and str(run.scores) in out
    assert (tmp_path / "report.html").exists()
    assert run.before["forget"] > 50, "the model knows what it is to forget"
