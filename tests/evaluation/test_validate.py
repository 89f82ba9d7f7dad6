"""The validation of the attacks, with fewer models than `python -m common.evaluation validate` takes."""

import pytest

from common.evaluation import validate
from common.evaluation.verdict import NOT_RECOVERED, SUPPRESSED


@pytest.fixture(scope="module")
def models():
    original = validate.trained(0, validate.FORGOTTEN + validate.RETAINED)
    return original, validate.Bank(original, [validate.trained(100 + i, validate.RETAINED) for i in range(3)])


def test_forgetting_by_the_head_alone_is_caught(models):
    original, bank = models
    found = bank.result(validate.head_only(original))
    assert {"probe", "prototype"} <= set(found.above()) and found.verdicts[0].level == SUPPRESSED
    assert "models that never saw them" in found.verdicts[0].text
    leaks = {f.name: f.leak.value for f in found.figures if f.headline and f.attack in ("probe", "prototype")}
    assert all(value == pytest.approx(1) for value in leaks.values()), leaks  # the features are the original's


def test_a_model_that_never_saw_the_classes_passes(models):
    found = models[1].result(validate.trained(201, validate.RETAINED))
    assert found.verdicts[0].level == NOT_RECOVERED and "at budget quick" in found.verdicts[0].text


def test_known_answers():
    lines = [*validate._similarity(validate.trained(0, ("c0", "c1"))), validate._random_labels()]
    assert len(lines) > 1 and all(line.passed for line in lines), lines


def test_an_adapter_comes_off_bit_for_bit(models):
    assert validate._undo(models[0]).passed


def test_the_table_shows_what_failed():
    text = validate.table([validate.Line("a", "b", "c", True), validate.Line("d", "e", "f", False)])
    assert text.splitlines()[-1].endswith("| NO          |") and len(text.splitlines()) == 4
