"""Models of other libraries give the same outputs and gradients with the operator in them, and are put back."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from ms_deform_attn import loader, ms_deform_attn, ms_deform_attn_reference, patch_mmcv, patch_transformers
from ms_deform_attn.patches import TRANSFORMERS
from msda import build_once, case
from torch import nn

TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DETR = {
    "d_model": 32,  # group normalisation wants 32 groups
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 6,
    "dropout": 0.0,
    "num_labels": 3,
}
RT = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 16, 24],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "hidden_expansion": 1.0,
    "decoder_in_channels": [16, 16, 16],
    "d_model": 16,
    "num_queries": 6,
    "decoder_layers": 2,
    "decoder_ffn_dim": 16,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
    "num_labels": 3,
    "with_box_refine": True,
}


def backbone():
    return hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def rt_backbone():
    return hf.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def hg_backbone():
    return hf.HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 8, 16], stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 8, 16, 24], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], embedding_size=8, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def swin():
    return hf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2, drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def pixels():
    return {"pixel_values": torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))}


def words():
    return {"input_ids": torch.tensor([[101, 5, 1012, 6, 1012, 102]])}


def deformable_detr():
    config = hf.DeformableDetrConfig(use_timm_backbone=False, backbone_config=backbone(), num_feature_levels=4, **DETR)
    return hf.DeformableDetrForObjectDetection(config), pixels()


def grounding_dino(kind="GroundingDino"):
    config = getattr(hf, f"{kind}Config")(
        backbone_config=backbone(), text_config={"model_type": "bert", "vocab_size": 2000, **TEXT},
        max_text_len=6, **DETR,
    )  # fmt: skip
    return getattr(hf, f"{kind}ForObjectDetection")(config), pixels() | words()


def mask2former():
    config = hf.Mask2FormerConfig(
        backbone_config=swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=5, num_labels=3,
    )  # fmt: skip
    return hf.Mask2FormerForUniversalSegmentation(config), pixels()


def oneformer():
    config = hf.OneFormerConfig(
        backbone_config=swin(), hidden_dim=32, mask_dim=32, conv_dim=32, encoder_feedforward_dim=16, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=5, num_labels=3, task_seq_len=4,
        use_auxiliary_loss=False, query_dec_layers=1, is_training=False, text_encoder_n_ctx=0,
    )  # fmt: skip
    return hf.OneFormerForUniversalSegmentation(config), pixels() | {"task_inputs": torch.ones(1, 4)}


def rt_detr():
    return hf.RTDetrForObjectDetection(hf.RTDetrConfig(backbone_config=rt_backbone(), **RT)), pixels()


def rt_detr_v2(**more):
    return hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(backbone_config=rt_backbone(), **RT, **more)), pixels()


def d_fine():
    config = hf.DFineConfig(backbone_config=hg_backbone(), decoder_n_points=[3, 4, 2], **RT)
    model = hf.DFineForObjectDetection(config)
    for module in model.modules():
        if hasattr(module, "ms_deformable_attn_core"):
            module.ms_deformable_attn_core = with_contiguous_gradient(module.ms_deformable_attn_core)
    return model, pixels()


def with_contiguous_gradient(function):
    """The model's own function, its gradient of `value` laid out as ours.

    What comes before it in the model (its convolutions, in torch) turns one and the same gradient in two layouts
    into two results; that difference is not the operator's.
    """

    def run(value, *rest):
        if value.requires_grad:
            value.register_hook(lambda grad: grad.contiguous())
        return function(value, *rest)

    return run


MODELS = {
    "deformable_detr": deformable_detr,
    "grounding_dino": grounding_dino,
    "mm_grounding_dino": lambda: grounding_dino("MMGroundingDino"),
    "mask2former": mask2former,
    "oneformer": oneformer,
    "rt_detr": rt_detr,
    "rt_detr_v2": rt_detr_v2,
    "d_fine": d_fine,
}


def results(model, inputs):
    """Outputs and parameter gradients."""
    model.zero_grad()
    out = model(**inputs)
    tensors = [x for x in out.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    heads = "logits", "pred_boxes", "class_queries_logits", "masks_queries_logits"
    sum((x.clamp(-10, 10) ** 2).mean() for name, x in out.items() if name in heads).backward()
    return tensors, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def calls(monkeypatch):
    """How often each call reached the operator."""
    build_once()
    seen = []
    monkeypatch.setattr("ms_deform_attn.patches.ms_deform_attn", lambda *x: seen.append(1) or ms_deform_attn(*x))
    with loader.use_backend("compiled"):
        yield seen


@pytest.mark.parametrize("name", MODELS)
def test_model_computes_the_same_with_the_operator(name, calls):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.eval().double()  # no dropout; and no rounding error large enough to move a value across a clamp
    inputs = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    for parameter in model.parameters():  # published initialisation: attention weights that depend on nothing
        parameter.data += 0.02 * torch.randn_like(parameter)
    outputs, grads = results(model, inputs)
    with patch_transformers(name):
        ours, our_grads = results(model, inputs)
        assert len(calls) >= 1
    count = len(calls)
    again, _ = results(model, inputs)
    assert len(calls) == count, "undo left the operator in place"
    for before, after, wanted in zip(ours, again, outputs, strict=True):
        torch.testing.assert_close(before, wanted, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(after, wanted, rtol=0, atol=0)
    assert our_grads.keys() == grads.keys() and any("sampling_offsets" in name for name in grads)
    largest = max(grad.abs().max() for grad in grads.values())
    for name, grad in grads.items():  # a bias before a normalisation has none but rounding errors
        assert (our_grads[name] - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-8 * largest, name


LAYERS = [name for name in TRANSFORMERS if name not in MODELS]


@pytest.mark.parametrize("name", LAYERS)
def test_attention_of_the_other_models(name, calls):
    """These models' own attention function, called as they call it."""
    try:
        patch = patch_transformers(name)
    except ValueError:
        pytest.skip(f"transformers {hf.__version__} has no {name}")
    patch.undo()
    module = sys.modules[f"transformers.models.{name}.modeling_{name}"]
    value, sizes, starts, locations, weights = case(dtype=torch.float32)
    if hasattr(module, "MultiScaleDeformableAttention"):
        layer = module.MultiScaleDeformableAttention()
        arguments = value, sizes, [tuple(x) for x in sizes.tolist()], starts, locations, weights, 64
    else:
        layer = module.multi_scale_deformable_attention_v2
        arguments = value, sizes.tolist(), locations.flatten(3, 4), weights.flatten(3), [2, 2]
    wanted = layer(*arguments)
    with patch_transformers(name) as patch:
        assert patch.names
        if not isinstance(layer, nn.Module):
            holder = next(cls for cls in vars(module).values() if hasattr(cls, "ms_deformable_attn_core"))
            layer = holder.ms_deformable_attn_core.fget(None)
        torch.testing.assert_close(layer(*arguments), wanted, rtol=1e-5, atol=1e-5)
        assert len(calls) == 1


def test_rounding_to_pixels_is_left_to_the_model(calls):
    torch.manual_seed(0)
    model, inputs = rt_detr_v2(decoder_method="discrete")
    with patch_transformers("rt_detr_v2"), torch.no_grad():
        model(**inputs)
    assert not calls


def test_a_second_patch_changes_nothing_and_the_first_undoes_all():
    module = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    original = module.multi_scale_deformable_attention
    first, second = patch_transformers("mask2former"), patch_transformers("mask2former")
    assert first.names and not second.names
    second.undo()
    assert module.multi_scale_deformable_attention is not original
    first.undo()
    first.undo()
    assert module.multi_scale_deformable_attention is original


def test_unknown_models_are_named():
    with pytest.raises(ValueError, match="`models` must be among .* got resnet"):
        patch_transformers("resnet")


class _StandIn(nn.Module):
    """mmcv's layer as published (its arguments, its two ways), for mmcv itself does not build today."""

    def __init__(self, embed_dims=16, num_heads=2, num_levels=2, num_points=2, im2col_step=64, batch_first=True):
        super().__init__()
        self.embed_dims, self.num_heads, self.num_levels, self.num_points = (
            embed_dims,
            num_heads,
            num_levels,
            num_points,
        )
        self.im2col_step = im2col_step
        self.sampling_offsets = nn.Linear(embed_dims, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dims, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, query, value, reference_points, spatial_shapes, level_start_index):
        counts = self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(value).unflatten(-1, (self.num_heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (*counts, 2)) / spatial_shapes.flip(-1)[:, None]
        locations = reference_points[:, :, None, :, None] + offsets
        weights = self.attention_weights(query).unflatten(-1, (counts[0], -1)).softmax(-1).unflatten(-1, counts[1:])
        module = sys.modules["mmcv.ops.multi_scale_deform_attn"]
        if value.is_cuda or self.im2col_step == 1:  # 1: pretend there is a card
            function = module.MultiScaleDeformableAttnFunction
            return function.apply(value, spatial_shapes, level_start_index, locations, weights, self.im2col_step)
        return module.multi_scale_deformable_attn_pytorch(value, spatial_shapes, locations, weights)


@pytest.mark.parametrize("im2col_step", [64, 1])
def test_mmcv_layer(monkeypatch, calls, im2col_step):
    package, ops = types.ModuleType("mmcv"), types.ModuleType("mmcv.ops")
    module = types.ModuleType("mmcv.ops.multi_scale_deform_attn")
    package.__path__ = ops.__path__ = []

    def plain(value, value_spatial_shapes, sampling_locations, attention_weights):
        starts = F.pad(value_spatial_shapes.prod(1).cumsum(0)[:-1], (1, 0))
        return ms_deform_attn_reference(value, value_spatial_shapes, starts, sampling_locations, attention_weights)

    class Function:
        @staticmethod
        def apply(value, shapes, starts, locations, weights, im2col_step):
            return plain(value, shapes, locations, weights)

    module.MultiScaleDeformableAttnFunction, module.multi_scale_deformable_attn_pytorch = Function, plain
    ops.MultiScaleDeformableAttention = _StandIn
    for name, stand_in in (("mmcv", package), ("mmcv.ops", ops), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, stand_in)
    torch.manual_seed(0)
    layer = ops.MultiScaleDeformableAttention(im2col_step=im2col_step)
    sizes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
    inputs = torch.randn(2, 6, 16), torch.randn(2, 26, 16), torch.rand(2, 6, 2, 2), sizes, starts

    def run():
        layer.zero_grad()
        out = layer(*inputs)
        out.square().sum().backward()
        return [out, *(p.grad for p in layer.parameters())]

    wanted = run()
    with patch_mmcv() as patch:
        assert len(patch.names) == 2
        got = run()
        assert len(calls) == 1
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert module.multi_scale_deformable_attn_pytorch is plain and len(calls) == 1


def test_mmcv_that_is_not_there():
    if "mmcv" not in sys.modules:
        with pytest.raises(ImportError, match="patch_mmcv needs mmcv"):
            patch_mmcv()
