"""Start-up: what --help needs, and nothing else, is imported."""

import subprocess
import sys

HEAVY = (
    "torchvision",
    "transformers",
    "timm",
    "scipy",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch.utils.flop_counter",
)


def test_help_waits_for_torch_alone():
    words = "import ks_classification.session, ks_detection.session, ks_segmentation.session, sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in found and not [name for name in HEAVY if name in found]
