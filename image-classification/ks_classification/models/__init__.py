"""Networks: timm and torchvision ViTs by name, the Face Transformer, a hybrid on a frozen stem."""
