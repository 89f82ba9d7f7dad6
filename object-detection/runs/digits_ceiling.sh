#!/bin/sh
# What the digit demonstration's learn phase could reach: learning 8 and 9 alone for 500 steps, with the demonstration's
# adapter. Usage: runs/digits_ceiling.sh [OUT]; SEEDS chooses what runs. (The JSON also holds `fltf` with 250 + 250 steps.)
set -e
cd "$(dirname "$0")/../.."
out=${1:-results/digits-ceiling}
flags=$(python -c "import sys; sys.path.insert(0, 'object-detection'); import demo; print(demo.DEMO.swap)")
for seed in ${SEEDS:-0}; do
  python object-detection/swap.py $flags --checkpoint object-detection/weights/digits.pth --order learn --method gs_lora --steps 500 \
    --seed "$seed" --output-dir "$out/learn-seed$seed"
done
python -m common.report "$out"/*-seed* --json object-detection/runs/digits_ceiling.json --html "$out/report.html"
