"""The demonstration: eight handwritten digits known, two learned, two forgotten, six retained, in both orders; then attacks."""

import sys

from ks_classification.session import SESSION

from common.demo import AS_PUBLISHED, Demo, main

# A ViT of 0.3 M parameters on 16-pixel digits: 16 patches of 4 pixels. bf16 and more threads would only cost time.
MODEL = "--model vit_tiny_patch16_224 --img-size 16 --patch-size 4 --model-args embed_dim=64,depth=6,num_heads=4"
COMMON = "--data digits --no-flip --crop 0.7 --batch-size 64 --precision fp32 --threads 1"
DEMO = Demo(
    about=__doc__,
    title="Knowledge swapping on handwritten digits",
    pretrain=f"{COMMON} {MODEL} --classes 0,1,2,3,4,5,8,9 --epochs 40 --lr 2e-3",
    swap=f"{COMMON} {AS_PUBLISHED} --learn 6,7 --forget 0,1 --epochs 8 --lr 4e-3 --lora-position all --bound 5 --eval-every 2",
    proof="--budget quick",
    imports=("timm", "torchvision.transforms.v2", "sklearn.datasets", "sklearn.model_selection", "sklearn.svm"),
)

if __name__ == "__main__":
    sys.exit(main(SESSION, DEMO))
