"""--reference with any method: the published settings that it shares, and its own published variants."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from common import methods
from common.settings import settings_from, settings_parser

REFERENCE = Path(__file__).parents[2] / "image-classification" / "ks_classification" / "reference.yaml"


@dataclass
class Data:
    """Stands for a domain's flags, with those that the published file sets."""

    head_rows: int = 0
    dropout: float = 0.0
    augment: bool = True
    keep_aspect: bool = True
    forget_fraction: float = 1.0
    retain_fraction: float = 1.0
    stratified: bool = True


def parsed(argv):
    return settings_from([Data], vars(settings_parser("swap.py", "", [Data], argv, REFERENCE).parse_args(argv)))


@pytest.mark.parametrize("method", methods.available())
def test_reference_switches_every_published_variant_on(method):
    argv = ["--method", method, "--reference"]
    swap = parsed(argv)
    assert swap.train.method == method and swap.train.carry_optimizer
    published = {k: v for k, v in vars(swap.method_config).items() if k.startswith("published_")}
    assert all(published.values())
    plain = parsed(argv[:2])
    assert not any(v for k, v in vars(plain.method_config).items() if k.startswith("published_"))


def test_a_published_variant_can_be_switched_off_again():
    argv = ["--method", "lwf", "--reference", "--no-published-relabel"]
    swap = parsed(argv)
    assert swap.method_config.published_no_distillation and not swap.method_config.published_relabel
