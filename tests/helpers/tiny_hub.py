"""Models of transformers of a few thousand weights, by their type."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from common import hub

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2],
        "window_size": 2, "out_features": STAGES, "drop_path_rate": 0.0}  # fmt: skip
DECODER = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
           "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 8, "dropout": 0.0,
           "model_type": "detr"}  # fmt: skip
FORMER = {"backbone_config": SWIN, "hidden_dim": 16, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 3,
          "encoder_feedforward_dim": 16, "dim_feedforward": 16, "num_queries": 8, "train_num_points": 100,
          "dropout": 0.0}  # fmt: skip
SEGMENTERS = {
    "mask2former": {**FORMER, "feature_size": 32, "mask_feature_size": 16},
    "oneformer": {**FORMER, "hidden_dim": 32, "conv_dim": 32, "mask_dim": 32, "query_dec_layers": 1},
    "maskformer": {"backbone_config": SWIN, "fpn_feature_size": 32, "mask_feature_size": 16, "decoder_config": DECODER,
                   "use_auxiliary_loss": True},
    "eomt": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
             "num_blocks": 2, "num_queries": 8, "train_num_points": 100},
    "segformer": {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2],
                  "decoder_hidden_size": 16},
    "upernet": {"backbone_config": {"model_type": "convnext", "depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16],
                                    "out_features": STAGES},
                "hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 16},
}  # fmt: skip


def save(kind: str, network_class: str, sizes: dict, names: list[str], folder: Path, side: int = 64) -> Path:
    """A folder as `save_pretrained` writes it, with random weights of a fixed seed."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if kind == "timm_wrapper":  # whose configs call them otherwise
        labels = {"num_classes": len(names), "label_names": names}
    model = hub.build(network_class, hub.make_config({"model_type": kind, **sizes, **labels}, kind))
    for value in model.parameters():  # biases away from zero, so that a row out of place shows
        torch.nn.init.normal_(value, std=0.1) if value.dim() == 1 else None
    processor = {"size": {"height": side, "width": side}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]}
    hub.save(model, folder, names, {"preprocessor_config.json": json.dumps(processor).encode()})
    return folder


VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
       "patch_size": 4}  # fmt: skip
CLASSIFIERS = {
    "dinov2": {**VIT, "mlp_ratio": 2},
    "dinov3_vit": {**VIT, "num_register_tokens": 2},
    "siglip2": {"vision_config": {**VIT, "num_patches": 16, "model_type": "siglip2_vision_model"}},
    "swinv2": {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4,
               "drop_path_rate": 0.0},
    "convnextv2": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "patch_size": 2, "image_size": 16},
    "hiera": {"image_size": [16, 16], "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1],
              "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "masked_unit_size": [4, 4], "num_query_pool": 1,
              "query_stride": [2, 2], "masked_unit_attention": [True, False], "drop_path_rate": 0.0},
    "timm_wrapper": {"architecture": "vit_tiny_patch16_224",
                     "model_args": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}},
    "clip": {"vision_config": {**VIT, "model_type": "clip_vision_model"}, "projection_dim": 12,
             "text_config": {**{k: v for k, v in VIT.items() if k not in ("image_size", "patch_size")},
                             "vocab_size": 600, "max_position_embeddings": 24, "eos_token_id": 1, "bos_token_id": 0,
                             "pad_token_id": 1, "model_type": "clip_text_model"}},
}  # fmt: skip


def tokenizer() -> bytes:
    """A tokenizer.json of single letters that frames a text as CLIP's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    made = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, [], end_of_word_suffix="</w>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("<|endoftext|>", 1), ("<|startoftext|>", 0), False, False)
    return made.to_str().encode()
