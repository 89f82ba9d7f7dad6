#!/bin/sh
# A small RT-DETR v2 of transformers (1.8 M parameters) on scenes of digits, as demo.py does it with DINO: from scratch
# on 0-7 (1,000 CPU seconds), then both orders. Started again, it goes on where it was. STEPS, PRECISION and ORDERS (empty:
# pretraining alone) change it.
set -e
here=$(dirname "$0")/..
out=${1:-results/rt-detr-digits}
python - "$out/config" <<'PY'
import sys
from transformers import RTDetrResNetConfig, RTDetrV2Config

stages = ["stage2", "stage3", "stage4"]
resnet = RTDetrResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 96, 96], depths=[1, 2, 2, 1], layer_type="basic",
                            out_features=stages)
RTDetrV2Config(backbone_config=resnet, freeze_backbone_batch_norms=False, d_model=128, encoder_hidden_dim=64,
               encoder_in_channels=[64, 96, 96], decoder_in_channels=[64, 64, 64], encoder_ffn_dim=256, decoder_ffn_dim=256,
               decoder_layers=3, num_queries=50, num_denoising=50, hidden_expansion=0.5).save_pretrained(sys.argv[1])
PY
scenes="--no-flip --sizes 120-136:8 --longest 160 --before-crop 128,144 --crop 116,128 --test-size 128 --eval-batch 32"
python "$here/pretrain.py" --data digits:01234567 $scenes --model "hf:$out/config" --steps ${STEPS:-1250} --batch-size 16 \
  --lr 5e-4 --schedule cosine --warmup 0.03 --clip 0.5 --precision ${PRECISION:-auto} --output-dir "$out/base"
for order in ${ORDERS-fltf fftl}; do
  python "$here/swap.py" --data digits $scenes --checkpoint "$out/base" --order $order --learn 8,9 --forget 0,1 \
    --method gs_lora --no-keep-until-forgotten --guard none --steps 200 --forget-steps 150 --batch-size 8 --lr 2e-3 \
    --schedule cosine --warmup 0.05 --clip 1.0 --lora-rank 16 --learn-weight 1.0 --forget-weight 0.3 --bound 8 \
    --sparsity-weight 0.001 --output-dir "$out/$order"
done
