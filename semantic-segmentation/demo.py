"""The demonstration: a small Mask2Former knows the plates 0-7, learns 8 and 9, forgets 0 and 1, retains the rest."""

import sys
from pathlib import Path

from ks_segmentation.session import SESSION

from common.demo import AS_PUBLISHED, Demo, main

HERE = Path(__file__).parent
COMMON = "--data digits --eval-batch 50 --precision fp32"
DEMO = Demo(
    about=__doc__,
    title="Knowledge swapping on plates with digits",
    pretrain=f"{COMMON} --config-file {HERE / 'configs/digits.yaml'} --classes ground,0,1,2,3,4,5,6,7 --steps 2400 "
    "--batch-size 16 --lr 1e-3 --clip 1",
    swap=f"{COMMON} {AS_PUBLISHED} --learn 8,9 --forget 0,1 --steps 300 --forget-steps 600 --batch-size 8 --lr 3e-3 --learn-weight 1 "
    "--keep-weight 1.5 --lora-position all --lora-rank 16",
    weights=HERE / "pretrained/digits",
)

if __name__ == "__main__":
    sys.exit(main(SESSION, DEMO))
