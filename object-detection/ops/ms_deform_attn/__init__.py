"""Multi-scale deformable attention: compiled for CPU and CUDA, with a plain PyTorch way that always works."""

from ms_deform_attn.op import ms_deform_attn
from ms_deform_attn.reference import ms_deform_attn_reference

__all__ = ["ms_deform_attn", "ms_deform_attn_reference"]
