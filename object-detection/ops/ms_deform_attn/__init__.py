"""Multi-scale deformable attention: compiled for CPU and CUDA, with a plain PyTorch way that always works."""

from ms_deform_attn.loader import use_backend
from ms_deform_attn.op import ms_deform_attn
from ms_deform_attn.patches import Patch, patch_mmcv, patch_transformers
from ms_deform_attn.reference import ms_deform_attn_reference

__all__ = ["Patch", "ms_deform_attn", "ms_deform_attn_reference", "patch_mmcv", "patch_transformers", "use_backend"]
