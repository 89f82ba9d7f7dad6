"""The public function."""

from torch import Tensor

from ms_deform_attn.reference import ms_deform_attn_reference


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples from several feature maps, [N, Q, M*D].

    Args:
        value: [N, S, M, D] the maps of all levels, one row per pixel, M heads of D channels.
        spatial_shapes: [L, 2] (height, width) of each level; the products add up to S.
        level_start_index: [L] row of `value` where each level starts.
        sampling_locations: [N, Q, M, L, P, 2] (x, y), 0 and 1 being the outer edges of the map; what lies
            outside samples zero, and so do NaN and infinity.
        attention_weights: [N, Q, M, L, P] factor of each sample.

    Raises:
        ValueError: naming the argument that does not fit.

    Source: Zhu et al., 2021, arXiv:2010.04159, equation 3.
    """
    return ms_deform_attn_reference(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
