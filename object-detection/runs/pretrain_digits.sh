#!/bin/sh
# The detector that demo.py starts from: digits 0-7 in scenes, from scratch, two stages (about 12 minutes of one quiet core).
# weights/digits.pth is the result of these stages, the first cut off at step 947 of a cosine schedule over 2500 steps
# (the learning rate at that point is this script's --min-lr).
set -e
here=$(dirname "$0")/..
out=${1:-results/digits-base}
scenes="--data digits:01234567 --no-flip --sizes 120-136:8 --longest 160 --before-crop 128,144 --crop 116,128
  --test-size 128 --eval-batch 32 --batch-size 16 --schedule cosine --clip 0.5 --half"
python "$here/pretrain.py" $scenes -c "$here/configs/digits.py" --steps 947 --lr 5e-4 --min-lr 3.4e-4 --warmup 0.03 \
  --output-dir "$out-1"
python "$here/pretrain.py" $scenes --checkpoint "$out-1" --steps 300 --lr 3.4e-4 --warmup 0.02 --output-dir "$out"
