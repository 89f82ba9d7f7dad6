"""Number formats and devices."""

import pytest
import torch

from common import precision
from common.devices import choose_device
from common.errors import UserError
from common.precision import autocast, choose

CPU = torch.device("cpu")


def test_auto_is_bf16_exactly_where_the_hardware_has_it(monkeypatch):
    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "bf16_in_hardware", lambda device, has=has: has)
        assert choose("auto", CPU) == expected


def test_half_precision_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="needs a GPU; on a CPU use bf16 or fp32"):
        choose("fp16", CPU)
    assert choose("bf16", CPU) == "bf16" and choose("fp16", torch.device("cuda")) == "fp16"


def test_unknown_formats_and_devices_are_refused(monkeypatch):
    with pytest.raises(UserError, match="must be one of auto, fp32, bf16, fp16, got fp8"):
        choose("fp8", CPU)
    with pytest.raises(UserError, match="`--device` must be auto, cpu, cuda or cuda:N, got tpu"):
        choose_device("tpu", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no GPU"):
        choose_device("cuda", 0)
    assert choose_device("auto", 0) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, rank in (("cuda", 1), ("cuda:1", 0), ("cuda:x", 0)):
        with pytest.raises(UserError, match="there is no GPU"):
            choose_device(name, rank)


def test_autocast_runs_products_in_the_chosen_format():
    x = torch.randn(4, 4)
    with autocast("bf16", CPU):
        assert (x @ x).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert (x @ x).dtype == torch.float32
