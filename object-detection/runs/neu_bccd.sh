#!/bin/sh
# Real images: a detector of six steel defects (NEU-DET) learns three kinds of blood cells (BCCD), forgets two defects,
# retains four; both orders. Usage: runs/neu_bccd.sh DATA WEIGHTS [OUT]
#   DATA holds neu/ and bccd/ in COCO form; WEIGHTS is a torchvision mobilenet_v2 state dict.
# SYMMETRIC=1: the weights expect pixels in -1..1, so the first convolution is rewritten for ImageNet's mean and deviation.
set -e
cd "$(dirname "$0")/../.."
DATA=$1 WEIGHTS=$2 OUT=${3:-results/neu-bccd}
mkdir -p "$OUT"
if [ -n "$SYMMETRIC" ]; then
  python - "$WEIGHTS" "$OUT/backbone.pth" <<'PYTHON'
import sys
import torch

state = torch.load(sys.argv[1], weights_only=True)
mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
weight = state["features.0.0.weight"].float()  # 2 (x d + m) - 1 = 2 d x + (2 m - 1) for a normalised pixel x
shift = (weight.sum((2, 3)) * (2 * mean - 1)).sum(1)
scale = state["features.0.1.weight"] / (state["features.0.1.running_var"] + 1e-5).sqrt()
state["features.0.0.weight"] = weight * (2 * deviation)[None, :, None, None]
state["features.0.1.bias"] = state["features.0.1.bias"] + scale * shift
torch.save(state, sys.argv[2])
PYTHON
  WEIGHTS=$OUT/backbone.pth
fi
small="--no-augment --test-size 160 --longest 224 --eval-batch 16 --feature-cache $OUT/maps --precision fp32"
if [ ! -f "$OUT/base/done.json" ]; then
  python object-detection/pretrain.py --data "$DATA/neu" --backbone-weights "$WEIGHTS" --freeze-backbone $small \
    -c object-detection/configs/mobilenet_small.py --options "enc_layers=2 num_queries=100" \
    --steps ${STEPS:-800} --batch-size 16 --lr 5e-4 --schedule cosine --warmup 0.03 --clip 0.5 --output-dir "$OUT/base"
fi
for seed in ${SEEDS:-0 1 2}; do
  for order in ${ORDERS:-fltf fftl}; do
    python object-detection/swap.py --checkpoint "$OUT/base" --data "$DATA/neu" --learn-data "$DATA/bccd" \
      --learn RBC,WBC,Platelets --forget inclusion,scratches --order "$order" $small \
      --method gs_lora --no-keep-until-forgotten --guard none \
      --steps ${SWAP_STEPS:-120} --batch-size 8 --lr 2e-3 --schedule cosine --warmup 0.05 --clip 1.0 --lora-rank 16 \
      --learn-weight 1.0 --forget-weight 0.3 --bound 8 --sparsity-weight 0.001 --seed "$seed" \
      --output-dir "$OUT/$order-seed$seed"
  done
done
python -m common.report "$OUT"/f*-seed* --json object-detection/runs/neu_bccd.json --html "$OUT/report.html"
