"""Swin Transformer as detectors use it: any image size, a norm per output stage; the published key names.

Written out here, because its window padding differs from timm's (which rolls before it pads) and because
adapters, checkpoints and analyses name the published modules (`layers.S.blocks.B.mlp.fc1`).

Segmentation does not use this module: its Swin is transformers' own, as `from_pretrained` and the Hub name it, with a
forward that copies windows less often (`ks_segmentation.models.mask2former.swin`) and is a fifth faster. That forward
lists the places of windows, which cannot be traced; there transformers' plain forward is what `torch.compile` and ONNX
see, here they would need this file beside it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common.layers import Linear, attention, feed_forward

# width, depths, heads, window
SIZES = {
    "swin_T_224_1k": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_S_224_1k": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_B_224_22k": (128, (2, 2, 18, 2), (4, 8, 16, 32), 7),
    "swin_B_384_22k": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_L_224_22k": (192, (2, 2, 18, 2), (6, 12, 24, 48), 7),
    "swin_L_384_22k": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


def windows_of(x: Tensor, window: int) -> Tensor:
    """[B, windows, window * window, C] of a map [B, H, W, C] whose sides divide by `window`."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(b, -1, window * window, c)


def map_of(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """[B, H, W, C], the inverse of `windows_of`."""
    b, c = windows.shape[0], windows.shape[-1]
    x = windows.view(b, height // window, width // window, window, window, c).transpose(2, 3)
    return x.reshape(b, height, width, c)


def relative_index(window: int) -> Tensor:
    """[window², window²] row of the bias table for each pair of window positions."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return dy * (2 * window - 1) + dx


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """[windows, window², window²] additive mask: -100 between parts that the shift put side by side."""
    shift = window // 2
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    band_y = (rows >= height - window).long() + (rows >= height - shift).long()
    band_x = (columns >= width - window).long() + (columns >= width - shift).long()
    region = (3 * band_y[:, None] + band_x[None, :])[None, :, :, None]  # [1, H, W, 1]
    ids = windows_of(region, window)[0, :, :, 0]  # [windows, window²]
    return (ids[:, None, :] != ids[:, :, None]) * -100.0


class WindowAttention(nn.Module):
    """Self-attention inside windows with a learned bias per relative position."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_index(window), persistent=False)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, W, N, C] of [B, W, N, C]; mask [W, N, N] or None."""
        b, w, n, c = x.shape
        q, k, v = self.qkv(x).view(b, w, n, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(n, n, self.heads).permute(2, 0, 1)[None]  # [1, heads, N, N]
        if mask is not None:
            bias = bias + mask[:, None]  # [W, heads, N, N]
        out = attention(q, k, v, bias.to(q.dtype))
        return self.proj(out.transpose(2, 3).reshape(b, w, n, c))


class Mlp(nn.Module):
    """Two linears with an exact GELU between them; where adapters go."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return feed_forward(x, self.fc1, self.fc2, "gelu")


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """`x`, with whole samples set to zero at `rate` while training and the others scaled up."""
    if rate == 0 or not training:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= rate
    return x * keep / (1 - rate)


class SwinBlock(nn.Module):
    """Window attention (shifted in every second block) and an MLP, both pre-normed."""

    def __init__(self, width: int, heads: int, window: int, shifted: bool, path_rate: float) -> None:
        super().__init__()
        self.window, self.shifted, self.path_rate = window, shifted, path_rate
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, H, W, C] of [B, H, W, C]; `mask` is the stage's shift mask."""
        h, w = x.shape[1:3]
        y = self.norm1(x)
        y = F.pad(y, (0, 0, 0, -w % self.window, 0, -h % self.window))  # after the norm: padding stays 0
        padded_h, padded_w = y.shape[1:3]
        shift = self.window // 2 if self.shifted else 0
        if shift:
            y = y.roll((-shift, -shift), dims=(1, 2))
        y = self.attn(windows_of(y, self.window), mask if shift else None)
        y = map_of(y, self.window, padded_h, padded_w)
        if shift:
            y = y.roll((shift, shift), dims=(1, 2))
        x = x + drop_path(y[:, :h, :w], self.path_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.path_rate, self.training)


class PatchMerging(nn.Module):
    """Halves height and width, doubles the width of the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinStage(nn.Module):
    """Blocks of one resolution and, unless it is the last, the step down to the next."""

    def __init__(self, width: int, heads: int, window: int, rates: list[float], last: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, shifted=i % 2 == 1, path_rate=rate) for i, rate in enumerate(rates)
        )
        self.downsample = None if last else PatchMerging(width)

    def forward(self, x: Tensor, use_checkpoint: bool) -> Tensor:
        h, w = (side + -side % self.window for side in x.shape[1:3])
        mask = shift_mask(h, w, self.window, x.device)
        for block in self.blocks:
            if use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False)  # reentrant would starve the adapters
            else:
                x = block(x, mask)
        return x


class PatchEmbed(nn.Module):
    """4x4 patches as vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # [B, H, W, C]


class Swin(nn.Module):
    """Feature maps of the chosen stages (strides 4, 8, 16, 32), each through its own LayerNorm."""

    def __init__(self, name: str, stages: tuple[int, ...], path_rate: float, use_checkpoint: bool) -> None:
        super().__init__()
        width, depths, heads, window = SIZES[name]
        self.stages, self.use_checkpoint = stages, use_checkpoint
        self.channels = [width * 2**stage for stage in stages]
        self.patch_embed = PatchEmbed(width)
        rates = [path_rate * block / (sum(depths) - 1) for block in range(sum(depths))]
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(depths):
            used, rates = rates[:depth], rates[depth:]
            last = stage == len(depths) - 1
            self.layers.append(SwinStage(width * 2**stage, heads[stage], window, used, last))
        for stage in stages:
            self.add_module(f"norm{stage}", nn.LayerNorm(width * 2**stage))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        maps = []
        for stage, layer in enumerate(self.layers):
            x = layer(x, self.use_checkpoint)
            if stage in self.stages:
                maps.append(getattr(self, f"norm{stage}")(x).permute(0, 3, 1, 2).contiguous())
            if layer.downsample is not None and stage < max(self.stages):
                x = layer.downsample(x)
        return maps
