"""Every test starts from the same seed and runs on one thread, so that results do not depend on their order."""

import functools
import gc
import os
import signal
from importlib import metadata

import pytest
import torch

from common.streams import seed_all

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup runs would be deaf to it, as they should; the tests send it
os.fsync = lambda handle: None  # waiting for the disk is half the time of a toy run
metadata.version = functools.cache(metadata.version)  # every run records versions; reading them is a quarter of it


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="write tests/golden/curves_*.json again")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process waits for another one's last file."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What is imported by now stays; walking it again and again for garbage is a tenth of the time of some tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def seeded():
    seed_all(0)
    torch.set_num_threads(1)  # a run may have set its own
