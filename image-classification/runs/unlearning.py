"""Continual unlearning of photographs with both reference runs: the runs behind the README's table.

python image-classification/runs/unlearning.py --images FOLDER --output-dir results/methods --seeds 0,1,2

25 classes are known; four tasks of 5 are learned, the first is unlearned after the second and the third after the
fourth. Each row is one command, swap.py --plan photos_unlearning.yaml --with-references. FOLDER holds tinyimagenet50/
and mobilenet_v2_imagenet1k.pth.
"""

import sys
from pathlib import Path

from methods_table import Row, cost_of
from rows import tabulate

from common import cli
from common.evaluation.run_measures import history_of, standing
from common.plan import from_record
from common.record import read_json
from common.report.runs import read_run

COLUMNS = {
    "forgotten": ("unlearned (%) ↓", 1), "known": ("known before (%) ↑", 1), "kept": ("learned and kept (%) ↑", 1),
    "distance_unlearned": ("distance, unlearned ↓", 3), "distance_remaining": ("distance, rest ↓", 3),
    "gap": ("accuracy gap, rest ↑", 1),
}  # fmt: skip
STEPS = 100  # of a phase
ROWS = {
    "amnesiac": "amnesiac --lr 3e-4",
    "amnesiac_lwf": "amnesiac --learner lwf --lr 3e-4",
    "amnesiac_ewc": "amnesiac --learner ewc --lr 3e-4",
    "amnesiac_der": "amnesiac --learner der --lr 3e-4",
    "amnesiac_der_pp": "amnesiac --learner der_pp --lr 3e-4",
    "amnesiac_lwf, adapter": "amnesiac --learner lwf --trains adapter --lr 5e-3",
    "gs_lora": "gs_lora --lr 1e-2 --forget-weight 0.5",
    "finetune": "finetune --lr 3e-4",
}


def main(argv: list[str]) -> None:
    """The runs and the table."""
    tabulate(argv, __doc__, "photos_unlearning", "known", f"--with-references --steps {STEPS}", ROWS, row_of, COLUMNS)


def row_of(folder: Path) -> Row:
    """One run in figures: accuracies at the end, and CLArena's two measures against the reference runs."""
    run, references = read_run(folder), read_json(folder / "references.json")
    plan = from_record(run.identity["plan"])
    gone, end = standing(plan.phases, len(plan.steps), "forget"), run.moments[-1]
    kept = [g for g in plan.learned_groups if g not in gone]
    return {
        "forgotten": run.pooled(gone, end), "known": run.pooled(["known"], end), "kept": run.pooled(kept, end),
        "distance_unlearned": references["distance"]["unlearned"], "gap": references["gap"]["mean"],
        "distance_remaining": references["distance"]["remaining"], "references": references,
        "history": history_of(run.lines), **cost_of(run),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.main(main))
