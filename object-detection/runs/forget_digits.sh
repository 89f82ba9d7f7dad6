#!/bin/sh
# Continual forgetting in scenes of digits, CL-DETR's way (objects of other groups are background): two tasks of two
# digits, from weights/digits.pth. About a quarter of an hour of one core; prints the table and writes its figures.
set -e
here=$(dirname "$0")/..
out=${1:-results/forget-digits}
common="--checkpoint $here/weights/digits.pth --data digits:01234567 --plan $here/configs/plans/digits_2x2.yaml --mixed remove
  --no-flip --sizes 120-136:8 --longest 160 --before-crop 128,144 --crop 116,128 --test-size 128 --eval-batch 32
  --batch-size 8 --schedule cosine --clip 1.0 --gallery 0 --no-report --precision fp32 --guard none"
run() { python "$here/swap.py" $common --method "$@"; }
run gs_lora --output-dir "$out/gs_lora" --steps 150 --lr 2e-3 --lora-rank 16 --forget-weight 0.3 --bound 8 --sparsity-weight 0.001
run rehearsal --output-dir "$out/rehearsal" --steps 150 --lr 2e-4
run gradient_ascent --output-dir "$out/gradient_ascent" --steps 20 --lr 1e-4
run ewc --output-dir "$out/ewc" --steps 150 --lr 2e-4
python -m common.report "$out" --json "$here/runs/forget_digits.json"
