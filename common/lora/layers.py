"""Linear layers with a low-rank adapter inside, under loralib's parameter names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.layers import linear, sum_first


class Adapter(nn.Module):
    """What every adapted layer offers, whatever its shape.

    `scale` times `B @ A` (from `factors()`) is the update of `base_weight`, which is never written to.
    `plain` holds the layer that was adapted, outside the module tree, so that it can come back as it was.
    """

    scale: float
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    past_A: Tensor
    past_B: Tensor
    merged: Tensor | None
    plain: tuple[nn.Module]

    def base_weight(self) -> Tensor:
        """The frozen weight that the adapter updates, [out, in]."""
        raise AssertionError("an adapter names its base weight")

    def unadapted(self, weight: Tensor) -> nn.Module:
        """The layer that was adapted, with this weight in the place of its base weight."""
        raise AssertionError("an adapter gives its layer back")

    def live(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The trainable factors: A [parts * r, in] and B [out, r], as loralib lays them out."""
        return self.lora_A, self.lora_B

    def init_adapter(self, out: int, inp: int, rank: int, alpha: float, parts: int) -> None:
        """Creates the factors. Raises UserError when the rank does not fit the layer."""
        limit = min(out // parts, inp)
        if not 1 <= rank <= limit:
            raise UserError(
                f"`--lora-rank` must be between 1 and {limit} for a layer of {inp} inputs and {out} outputs, "
                f"got {rank}."
            )
        weight = self.base_weight()
        self.rank, self.parts, self.scale, self.merged = rank, parts, alpha / rank, None
        self.lora_A = nn.Parameter(weight.new_empty(parts * rank, inp))
        self.lora_B = nn.Parameter(weight.new_empty(out, rank))
        self.register_buffer("past_A", weight.new_zeros(0, inp))
        self.register_buffer("past_B", weight.new_zeros(out, 0))
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None, a: float = math.sqrt(5)) -> None:
        """Back to an update of zero: A ~ U(-b, b) with b = sqrt(6 / ((1 + a^2) in)), B = 0."""
        bound = math.sqrt(6 / ((1 + a * a) * self.lora_A.shape[1]))
        fresh = torch.rand(self.lora_A.shape, generator=generator) * (2 * bound) - bound
        self.lora_A.copy_(fresh)
        self.lora_B.zero_()

    @torch.no_grad()
    def stack(self, generator: torch.Generator | None = None, a: float = math.sqrt(5)) -> None:
        """Freezes the present update as it is and starts a fresh one on top: no output changes."""
        big_a, big_b = self.factors()
        self.past_A, self.past_B = big_a.clone(), big_b.clone()
        self.reset(generator, a)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, in] and B [out, R] of the whole update, fused parts as a block diagonal."""
        a, b = self.live()
        if self.parts > 1:
            b = torch.block_diag(*b.chunk(self.parts))  # [out, parts * r]
        if not len(self.past_A):
            return a, b
        return torch.cat([self.past_A, a]), torch.cat([self.past_B, b], dim=1)

    def delta(self) -> Tensor:
        """The update of the base weight, [out, in]."""
        a, b = self.factors()
        return self.scale * (b @ a)

    def low_rank(self, x: Tensor) -> Tensor:
        """scale * x A' B' without ever forming the [out, in] product; x is [..., in]."""
        hidden = linear(x, self.lora_A) * self.scale  # [..., parts * r]; scaled while it is narrow
        if self.parts == 1:
            out = linear(hidden, self.lora_B)
        else:
            pieces = zip(hidden.chunk(self.parts, -1), self.lora_B.chunk(self.parts), strict=True)
            out = torch.cat([linear(h, b) for h, b in pieces], dim=-1)
        if self.past_A.shape[0]:
            out = out + linear(linear(x, self.past_A) * self.scale, self.past_B)
        return out


class LoRALinear(Adapter, nn.Linear):
    """y = x W' + b + alpha / r * (x A') B', with W and b frozen.

    Args:
        base: the layer to adapt; its weight and bias are shared, not copied, and frozen.
        rank: r, at most min(out / parts, in).
        alpha: numerator of the scale (loralib: `lora_alpha`).
        parts: number of equal slices of the output with an adapter each (3 for a fused qkv, loralib's
            MergedLinear layout: A [3r, in], B [out, r]).

    Source: Hu et al., 2021, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float = 1.0, parts: int = 1) -> None:
        nn.Module.__init__(self)
        self.plain = (base,)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.affine = getattr(base, "affine", F.linear)  # a fresh adapter changes no bit of the base's product
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.init_adapter(base.out_features, base.in_features, rank, alpha, parts)
        self.train(base.training)

    def base_weight(self) -> Tensor:
        return self.weight

    def unadapted(self, weight: Tensor) -> nn.Module:
        layer = self.plain[0]
        layer.weight, layer.bias = weight, self.bias
        return layer.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged is not None:
            return self.affine(x, self.merged, self.bias)
        if self.parts == 1 and sum_first(x, self.weight, self.rank + len(self.past_A)):
            a, b = self.factors()
            return self.affine(x, torch.addmm(self.weight, b, a, alpha=self.scale), self.bias)
        return self.affine(x, self.weight, self.bias).add_(self.low_rank(x))
