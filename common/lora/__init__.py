"""Low-rank adapters that live inside the layers they adapt (Hu et al., 2021, arXiv:2106.09685)."""

from common.lora.adapted import LoraConfig, adapters, fresh, inject, merged, pick_blocks, put_back, select
from common.lora.attention import LoRAMultiheadAttention
from common.lora.layers import Adapter, LoRALinear
from common.lora.positions import positions

__all__ = ["Adapter", "LoRALinear", "LoRAMultiheadAttention", "LoraConfig", "adapters", "fresh", "inject", "merged",
           "pick_blocks", "positions", "put_back", "select"]  # fmt: skip
