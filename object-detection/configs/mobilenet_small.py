"""A small DINO on torchvision's MobileNetV2 (3 scales), for real images on two CPU cores."""

backbone = "mobilenet_v2"
return_interm_indices = [1, 2, 3]
num_feature_levels = 3
hidden_dim = 128
nheads = 8
dim_feedforward = 512
enc_layers = 3
dec_layers = 3
num_queries = 150
num_select = 100
dn_number = 50
