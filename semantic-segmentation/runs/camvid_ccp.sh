#!/bin/sh
# Real images: a Mask2Former of eleven street classes (CamVid) learns five kinds of clothing (Clothing Co-Parsing),
# forgets car and tree, retains nine; both orders. Usage: runs/camvid_ccp.sh DATA WEIGHTS [OUT]
#   DATA holds camvid/ and ccp/ (images/, annotations/, classes.json); WEIGHTS is a torchvision mobilenet_v2 state dict
#   that expects pixels in -1..1 (for one that expects ImageNet's mean and deviation: MODEL.PIXEL_MEAN, PIXEL_STD).
# The photos show people: no picture goes into the report (--gallery 0).
set -e
cd "$(dirname "$0")/../.."
DATA=$1 WEIGHTS=$2 OUT=${3:-results/camvid-ccp}
mkdir -p "$OUT"
# Small enough for one CPU core: pictures of 192-256 pixels, four decoder layers; 1.2 s of CPU time per pretraining step.
small="INPUT.MIN_SIZE_TRAIN (192,224,256) INPUT.CROP.SIZE (192,192) INPUT.MIN_SIZE_TEST 224 MODEL.MASK_FORMER.DEC_LAYERS 5
  MODEL.MASK_FORMER.TRAIN_NUM_POINTS 1024 MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 2"
common="--eval-batch 8 --precision fp32 --gallery 0 --cache-dir $OUT"
if [ ! -f "$OUT/base/done.json" ]; then
  python semantic-segmentation/pretrain.py --config-file semantic-segmentation/configs/mobilenet.yaml --data "$DATA/camvid" \
    --backbone-weights "$WEIGHTS" --steps ${STEPS:-1100} --batch-size 8 --lr 5e-4 $common --output-dir "$OUT/base" $small
fi
for seed in ${SEEDS:-0}; do
  for order in ${ORDERS:-fltf fftl}; do
    python semantic-segmentation/swap.py --checkpoint "$OUT/base" --data "$DATA/camvid" --learn-data "$DATA/ccp" \
      --learn hair,shoes,bag,pants,dress --forget car,tree --order "$order" --steps ${SWAP_STEPS:-500} --forget-steps 200 \
      --method gs_lora --no-keep-until-forgotten --guard none \
      --batch-size 4 --lr 2e-3 --learn-weight 1 --keep-weight 1.5 --lora-position all --seed "$seed" $common \
      --output-dir "$OUT/$order-seed$seed"
  done
done
python -m common.report "$OUT"/f*-seed* --json semantic-segmentation/runs/camvid_ccp.json --html "$OUT/report.html"
