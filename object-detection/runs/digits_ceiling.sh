#!/bin/sh
# What the digit demonstration's learn phase could reach: learning 8 and 9 alone, with the demonstration's adapter and as
# many steps as both of its phases have. Usage: runs/digits_ceiling.sh [OUT]; SEEDS and ORDERS choose what runs.
set -e
cd "$(dirname "$0")/../.."
out=${1:-results/digits-ceiling}
flags=$(python -c "import sys; sys.path.insert(0, 'object-detection'); import demo; print(demo.SWAP)")
for seed in ${SEEDS:-0}; do
  for order in ${ORDERS:-fltf learn}; do
    steps=250
    if [ "$order" = learn ]; then steps=500; fi
    python object-detection/swap.py $flags --checkpoint object-detection/weights/digits.pth --order "$order" \
      --steps "$steps" --seed "$seed" --output-dir "$out/$order-seed$seed"
  done
done
python -m common.report "$out"/*-seed* --json object-detection/runs/digits_ceiling.json --html "$out/report.html"
