#!/usr/bin/env bash
# The photograph table: learn 5 kinds of flowers, forget 5 of 50 ImageNet classes, retain 45; both orders, three
# seeds. Run base_tinyimagenet50.sh first. Phase 1 of fltf is at the same time "the same adapter only learns".
set -euo pipefail
cd "$(dirname "$0")/../.."
PHOTOS=${PHOTOS:?set PHOTOS to the folder of the images}
OUT=${OUT:-results/photos}
for order in ${ORDERS:-fltf fftl}; do
  for seed in ${SEEDS:-0 1 2}; do
    python image-classification/swap.py --checkpoint "$OUT/base" \
      --data "$PHOTOS/tinyimagenet50" --learn-data "$PHOTOS/flowers5" \
      --learn daisy,dandelion,rose,sunflower,tulip --forget 0,10,20,30,40 --order "$order" \
      --method gs_lora --no-keep-until-forgotten --guard none \
      --cache-stem "$OUT/stem" --stem-views 3 --crop 0.5 \
      --steps 150 --batch-size 64 --lr 2e-3 --bound 5 --seed "$seed" --output-dir "$OUT/$order-seed$seed" "$@"
  done
done
python -m common.report "$OUT"/f*-seed* --json image-classification/runs/swap_flowers5.json --html "$OUT/report.html"
