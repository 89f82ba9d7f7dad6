#!/bin/sh
# The detector that demo.py starts from: digits 0-7 in scenes, from scratch (about 20 minutes on one quiet core).
# Its result, model/model.pth, is committed as object-detection/weights/digits.pth.
exec python "$(dirname "$0")/../pretrain.py" --data digits:01234567 \
  -c "$(dirname "$0")/../configs/digits.py" --no-flip --sizes 120-136:8 --longest 160 --before-crop 128,144 \
  --crop 116,128 --test-size 128 --eval-batch 32 --steps 2500 --batch-size 16 --lr 5e-4 --warmup 0.03 --schedule cosine \
  --clip 0.5 --half --output-dir "${1:-results/digits-base}"
