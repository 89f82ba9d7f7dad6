#!/bin/sh
# Street scenes (CamVid, 11 classes) learn five kinds of clothing (Clothing Co-Parsing) and forget two street classes.
# Usage: runs/camvid_ccp.sh DATA WEIGHTS   DATA holds camvid/ and ccp/ (images/, annotations/, classes.json);
# WEIGHTS is a torchvision mobilenet_v2 state dict.
set -e
cd "$(dirname "$0")/../.."
DATA=$1 WEIGHTS=$2 OUT=${3:-results/segmentation}
SMALL="INPUT.MIN_SIZE_TEST 256 INPUT.CROP.SIZE (256,256) INPUT.MIN_SIZE_TRAIN (192,256,320)"
python semantic-segmentation/pretrain.py --config-file semantic-segmentation/configs/mobilenet.yaml --data "$DATA/camvid" \
  --backbone-weights "$WEIGHTS" --steps 4000 --batch-size 4 --lr 3e-4 --output-dir "$OUT/camvid-base" $SMALL
python semantic-segmentation/swap.py --checkpoint "$OUT/camvid-base" --data "$DATA/camvid" --learn-data "$DATA/ccp" \
  --learn hair,shoes,bag,pants,dress --forget pole,fence --order fltf --steps 400 --batch-size 4 --lr 1e-3 \
  --output-dir "$OUT/camvid-ccp-fltf"
