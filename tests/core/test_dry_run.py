"""`--dry-run` tells what a run would do and writes nothing."""

import re

import pytest
from toy import DOMAINS, make_trainer, swap_plan

from common import dry_run


@pytest.mark.parametrize("kind", DOMAINS)
@pytest.mark.parametrize("method", ["mask_replay", "finetune"])
def test_a_dry_run_names_what_a_run_does_and_leaves_nothing(tmp_path, capsys, kind, method):
    made = DOMAINS[kind]
    trainer = make_trainer(made(made().make_model()), swap_plan(), method, tmp_path / "run", epochs=3)
    dry_run.tell(trainer)
    told = capsys.readouterr().out
    for phase in trainer.plan.phases:
        _, steps = trainer._length(phase)
        sizes = [trainer.domain.size(part, train=True) for part in (phase.target, phase.keep)]
        assert re.search(rf"{phase.title} +{steps} +{sizes[0]} +{sizes[1]}\n", told)
    for group, classes in trainer.plan.groups.items():
        counts = [trainer.domain.size(classes, train=part) for part in (True, False)]
        assert re.search(rf"{group} +{counts[0]} +{counts[1]} +{', '.join(classes)}\n", told)
    whole = make_trainer(made(made().make_model()), swap_plan(), method, tmp_path / "whole", steps=1)
    whole.swap()
    assert f"trained values  {whole._description()['parameters']['trainable']:,} of" in told
    assert "ms a step" in told and " on cpu with " in told and "MiB at most" in told
    assert not (tmp_path / "run").exists()
