"""A DINO of 1.7 M parameters for 128-pixel scenes of digits (see ks_detection/data/scenes.py)."""

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
dn_number = 50
dn_box_noise_scale = 0.4
