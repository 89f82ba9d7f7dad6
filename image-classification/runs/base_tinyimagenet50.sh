#!/usr/bin/env bash
# Base model of the photograph table: 50 ImageNet classes at 64 px, a ViT of 6 blocks (width 192) on a frozen
# MobileNetV2 stem. PHOTOS holds tinyimagenet50/, flowers5/ and mobilenet_v2_imagenet1k.pth.
set -euo pipefail
cd "$(dirname "$0")/../.."
PHOTOS=${PHOTOS:?set PHOTOS to the folder of the images}
OUT=${OUT:-results/photos}
python image-classification/pretrain.py --data "$PHOTOS/tinyimagenet50" \
  --model hybrid_mobilenetv2 --img-size 128 --stem-weights "$PHOTOS/mobilenet_v2_imagenet1k.pth" \
  --cache-stem "$OUT/stem" --stem-views 3 --crop 0.5 --epochs 8 --batch-size 64 --lr 1e-3 \
  --label-smoothing 0.1 --seed 0 --output-dir "$OUT/base" "$@"
