"""The demonstration trains what its proof compares with where the proof looks for it."""

import json
import runpy
from pathlib import Path

from ks_classification.session import SESSION

from common import demo
from common.evaluation.retrained import References
from common.run_flags import parsed

DEMO = runpy.run_path(str(Path(__file__).parents[2] / "image-classification/demo.py"))["DEMO"]


def test_the_proof_finds_the_references_of_the_demonstration(tmp_path):
    base = tmp_path / "base-seed0"
    rows = demo._references(SESSION, DEMO, base, anew=False)
    argv = demo._pretrain(SESSION, DEMO, base, 0, "--overwrite")
    recorded = json.loads(json.dumps(parsed(SESSION, "pretrain", argv).flags))
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text("{}")  # it is a run by then
    asked = References(
        SESSION, [recorded], ["2", "3", "4", "5", "8", "9", "6", "7"], ["0", "1"], base, tmp_path / "run"
    )
    assert [row.folder for row in rows] == [asked.place / f"seed{i}" for i in (1, 2, 3)]
    assert all(row.words[:3] == ("-m", "ks_classification", "pretrain") for row in rows)
