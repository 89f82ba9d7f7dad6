"""A Deformable DETR of 1.8 M parameters for 128-pixel scenes of digits (see ks_detection/data/scenes.py)."""

_base_ = ["digits.py"]
modelname = "deformable_detr"
with_box_refine = True
dropout = 0.0
