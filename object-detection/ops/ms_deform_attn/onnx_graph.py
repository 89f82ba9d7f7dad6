"""The operator in ONNX: one GridSample per level. Sizes of maps and batch stay open."""

from typing import Any

import torch


def table() -> dict[Any, Any]:
    """What `torch.onnx.export(..., custom_translation_table=...)` takes. Needs onnxscript."""
    return {torch.ops.ms_deform_attn.forward.default: _translated()}


def _translated():
    from onnxscript import opset18 as op  # an optional package

    def ints(*numbers: int):
        return op.Constant(value_ints=list(numbers))

    def ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
        """Arguments and result as of `ms_deform_attn`; letters of its docstring."""
        sizes, places = op.Shape(value), op.Shape(sampling_locations)
        n, m, d, q, p = (
            op.Gather(s, ints(i)) for s, i in ((sizes, 0), (sizes, 2), (sizes, 3), (places, 1), (places, 4))
        )
        heads = op.Mul(n, m)
        within = op.Min(op.Max(sampling_locations, op.Constant(value_float=-1.0)), op.Constant(value_float=2.0))
        grids = op.Sub(op.Mul(within, op.Constant(value_float=2.0)), op.Constant(value_float=1.0))
        grids = op.Transpose(grids, perm=[0, 2, 1, 3, 4, 5])  # [N, M, Q, L, P, 2]
        factors = op.Transpose(attention_weights, perm=[0, 2, 1, 3, 4])
        rows = op.Reshape(op.Transpose(value, perm=[0, 2, 3, 1]), op.Concat(heads, d, ints(-1), axis=0))  # [N*M, D, S]
        total = None
        for level in range(sampling_locations.shape[3]):
            size = op.Gather(spatial_shapes, op.Constant(value_int=level))
            start = op.Gather(level_start_index, ints(level))
            stop = op.Add(start, op.ReduceProd(size, keepdims=1))
            image = op.Reshape(op.Slice(rows, start, stop, ints(2)), op.Concat(heads, d, size, axis=0))
            grid = op.Reshape(
                op.Gather(grids, op.Constant(value_int=level), axis=3), op.Concat(heads, q, p, ints(2), axis=0)
            )
            sample = op.GridSample(
                image, grid, align_corners=0, mode="bilinear", padding_mode="zeros"
            )  # [N*M, D, Q, P]
            factor = op.Gather(factors, op.Constant(value_int=level), axis=3)
            factor = op.Reshape(factor, op.Concat(heads, ints(1), q, p, axis=0))
            part = op.ReduceSum(op.Mul(sample, factor), ints(3), keepdims=0)
            total = part if total is None else op.Add(total, part)
        return op.Transpose(op.Reshape(total, op.Concat(n, op.Mul(m, d), q, axis=0)), perm=[0, 2, 1])

    return ms_deform_attn
