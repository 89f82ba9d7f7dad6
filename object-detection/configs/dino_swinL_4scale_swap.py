"""The 101-class Swin-L detector of Knowledge Swapping (arXiv:2502.08075)."""

_base_ = ["dino_r50_4scale.py"]
backbone = "swin_L_384_22k"
use_checkpoint = True
num_classes = 101
dn_labelbook_size = 102
