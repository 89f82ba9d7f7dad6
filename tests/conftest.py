"""Every test starts from the same seed and runs on one thread, so that results do not depend on their order."""

import os

import pytest
import torch

torch.set_num_threads(1)
os.fsync = lambda handle: None  # waiting for the disk is half the time of a toy run


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
