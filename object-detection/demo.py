"""The demonstration: a detector that knows the digits 0-7 in scenes learns 8 and 9 and forgets 0 and 1, in both orders."""

import shlex
import sys
from pathlib import Path

from ks_detection.session import SESSION

from common.demo import AS_PUBLISHED, Demo, main

HERE = Path(__file__).resolve().parent
CONFIG = shlex.quote(str(HERE / "configs" / "digits.py"))
SCENES = (
    "--no-flip --sizes 120-136:8 --longest 160 --before-crop 128,144 --crop 116,128 --test-size 128 --eval-batch 32"
)
DEMO = Demo(
    about=__doc__,
    title="Knowledge swapping in scenes of handwritten digits",
    pretrain=f"--data digits:01234567 {SCENES} --config-file {CONFIG} --steps 1250 --batch-size 16 "
    "--lr 5e-4 --schedule cosine --clip 0.5 --half",
    swap=f"--data digits {SCENES} {AS_PUBLISHED} --learn 8,9 --forget 0,1 --steps 400 --forget-steps 150 --batch-size 8 --lr 2e-3 "
    "--schedule cosine --warmup 0.05 --clip 1.0 --lora-rank 16 --learn-weight 1.0 --forget-weight 0.3 --bound 8 "
    "--sparsity-weight 0.001 --gallery 3",
    weights=HERE / "weights" / "digits.pth",
)

if __name__ == "__main__":
    sys.exit(main(SESSION, DEMO))
