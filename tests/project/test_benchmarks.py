"""The benchmarks run at their smallest and print time, memory, the share of the limit and a ratio."""

import importlib.util
from pathlib import Path

import pytest

from common import cli, timing

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "image-classification": ("main", ["--model", "vit_tiny_patch16_224", "--batch-size", "1"]),
    "object-detection": (
        "run",
        ["--height", "64", "--width", "64", "--backbone", "tiny", "--paths", "reference", "op"],
    ),
    "semantic-segmentation": ("run", ["--size", "64", "--allocator", "default"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("folder", SMALLEST)
def test_a_benchmark_prints_its_tables(folder, capsys, monkeypatch):
    monkeypatch.setattr(timing, "machine_speed", lambda precision, clock: 1e11)  # measured in test_timing
    spec = importlib.util.spec_from_file_location(f"benchmark_of_{folder}", ROOT / folder / "benchmark.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    body, flags = SMALLEST[folder]
    one = ["--steps", "1", "--warm-up", "0", "--threads", "1"]
    assert cli.main(getattr(script, body), [*flags, *one]) == 0
    told = capsys.readouterr().out
    assert told.count("% of the limit") == told.count("peak memory") >= 2 and "times as fast as" in told
