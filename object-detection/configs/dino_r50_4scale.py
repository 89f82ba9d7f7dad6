"""The published DINO with ResNet-50 and four feature levels; every other constant is the default."""

backbone = "resnet50"
num_classes = 91
dn_labelbook_size = 91
dn_box_noise_scale = 1.0  # every published command line says so
