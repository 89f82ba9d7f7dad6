"""The compiled operator in the multi-scale deformable attention of transformers' detectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ks_detection.models.parts.sampling import Sampling, sample


def use_operator(network: nn.Module) -> int:
    """Puts the operator where transformers samples level by level with `grid_sample`; the number of layers changed.

    Layers with `decoder_method` "discrete" keep their own sampling.
    """
    changed = 0
    for name, layer in list(network.named_modules()):
        if type(layer).__name__ in ("MultiScaleDeformableAttention", "DeformableDetrMultiscaleDeformableAttentionCore"):
            network.set_submodule(name, Sampling())
        elif hasattr(layer, "ms_deformable_attn_core") and layer.decoder_method == "default":
            layer.ms_deformable_attn_core = points_per_level
        elif type(layer).__name__ == "RTDetrV2MultiscaleDeformableAttention" and layer.method == "default":
            network.set_submodule(name, RtAttention(layer))
        else:
            continue
        changed += 1
    return changed


def points_per_level(value, sizes, locations, weights, points: list[int], method: str = "default") -> Tensor:
    """[B, Q, heads * D] as transformers' `multi_scale_deformable_attention_v2` gives it.

    Args:
        value: [B, S, heads, D]; sizes: (height, width) per level; points: samples per level.
        locations: [B, Q, heads, sum(points), 2] in 0..1; weights: [B, Q, heads, sum(points)].
    """
    shapes = torch.tensor(sizes, dtype=torch.long, device=value.device)
    counts = shapes.prod(1)
    if len(set(points)) == 1:
        grid = (len(points), points[0])
        return sample(
            value, shapes, counts.cumsum(0) - counts, locations.unflatten(3, grid), weights.unflatten(3, grid)
        )
    lengths = [height * width for height, width in sizes]
    parts = zip(
        value.split(lengths, 1), shapes.split(1), locations.split(points, 3), weights.split(points, 3), strict=True
    )
    start = shapes.new_zeros(1)
    return sum(
        sample(v, shape, start, place[:, :, :, None], weight[:, :, :, None]) for v, shape, place, weight in parts
    )


class RtAttention(nn.Module):
    """RTDetrV2MultiscaleDeformableAttention with its own parameters and the operator (references are boxes there)."""

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        self.heads, self.points, self.offset_scale = theirs.n_heads, theirs.n_points_list, theirs.offset_scale
        for name, part in theirs.named_children():
            self.add_module(name, part)
        self.register_buffer("n_points_scale", theirs.n_points_scale)

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None,
        position_embeddings=None, reference_points=None, spatial_shapes=None, spatial_shapes_list=None, **others,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """([B, Q, D], weights [B, Q, heads, samples]) of queries [B, Q, D], tokens [B, S, D] and boxes [B, Q, 1, 4]."""
        queries = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        value = self.value_proj(encoder_hidden_states)
        if attention_mask is not None:
            value = value.masked_fill(~attention_mask[..., None], 0.0)
        value, grid = value.unflatten(-1, (self.heads, -1)), (self.heads, sum(self.points))
        offsets = self.sampling_offsets(queries).unflatten(-1, (*grid, 2)) * self.n_points_scale[:, None]
        weights = self.attention_weights(queries).unflatten(-1, grid).softmax(-1)
        boxes = reference_points[:, :, None]  # [B, Q, 1, 1, 4]
        locations = boxes[..., :2] + offsets * boxes[..., 2:] * self.offset_scale
        sampled = points_per_level(value, spatial_shapes_list, locations, weights, self.points)
        return self.output_proj(sampled), weights
