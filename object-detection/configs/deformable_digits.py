"""A Deformable DETR of 1.8 M parameters for 128-pixel scenes of digits (see ks_detection/scenes.py)."""

modelname = "deformable_detr"
backbone = "tiny"
return_interm_indices = [1, 2, 3]
num_feature_levels = 3
hidden_dim = 128
nheads = 8
dim_feedforward = 256
enc_layers = 2
dec_layers = 3
num_queries = 50
num_select = 100
with_box_refine = True
dropout = 0.0
