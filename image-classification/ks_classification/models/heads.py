"""Classifier heads over embeddings: softmax and the margin heads of face recognition."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError


class _Head:
    """What all heads share; a subclass computes logits, with labels as in training."""

    is_classifier = True

    def item_loss(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """[N] what each item is trained with: cross-entropy of the logits of training."""
        return F.cross_entropy(self(embedding, labels), labels, reduction="none")

    def loss(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Scalar, mean of `item_loss` over the batch."""
        return self.item_loss(embedding, labels).mean()


class Softmax(_Head, nn.Linear):
    """logits = z W' + b; the same with and without labels."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, embedding: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(embedding)


class _Cosine(_Head, nn.Module):
    """Logits s cos(theta_j), theta_j the angle between the embedding and row j of the weight; margin: on the true class."""

    def __init__(self, in_features: int, out_features: int, scale: float = 64.0, margin: float = 0.0) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scale, self.margin = in_features, out_features, scale, margin
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.xavier_uniform_(self.weight)

    def cosine(self, embedding: Tensor) -> Tensor:
        """[N, C] cosines, -1..1, in float32: in bfloat16 the scale of 64 would make steps of a quarter of them."""
        with torch.autocast(embedding.device.type, enabled=False):
            return F.linear(F.normalize(embedding.float()), F.normalize(self.weight.float()))

    def with_margin(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """[N, C] cosines with the margin on the true class."""
        return cosine

    def forward(self, embedding: Tensor, labels: Tensor | None = None) -> Tensor:
        """[N, C] logits; with labels the margin lies on the true class, as in training."""
        cosine = self.cosine(embedding)
        return self.scale * (cosine if labels is None else self.with_margin(cosine, labels))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, scale={self.scale:g}"


class CosFace(_Cosine):
    """s (cos theta_y - m) on the true class, s cos theta_j on the others.

    Source: Wang et al., CVPR 2018, arXiv:1801.09414, equation 4.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 64.0, margin: float = 0.35) -> None:
        super().__init__(in_features, out_features, scale, margin)

    def with_margin(self, cosine: Tensor, labels: Tensor) -> Tensor:
        return cosine - self.margin * F.one_hot(labels, self.out_features).to(cosine)


class ArcFace(_Cosine):
    """s cos(theta_y + m) on the true class; beyond theta_y = pi - m, where that would rise again, s (cos theta_y - m sin m).

    Source: Deng et al., CVPR 2019, arXiv:1801.07698, equation 3.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__(in_features, out_features, scale, margin)

    def with_margin(self, cosine: Tensor, labels: Tensor) -> Tensor:
        true = cosine.gather(1, labels[:, None])  # [N, 1]
        sine = (1 - true.square()).clamp_min(1e-12).sqrt()  # the root's slope at 0 is infinite
        turned = true * math.cos(self.margin) - sine * math.sin(self.margin)
        turned = torch.where(true > -math.cos(self.margin), turned, true - self.margin * math.sin(self.margin))
        return cosine.scatter(1, labels[:, None], turned)


class SFace(_Cosine):
    """s cos theta_j, trained not by cross-entropy but by pulls and pushes that fade with the angle.

    loss of an item = -r_in(theta_y) cos theta_y + sum_{j != y} r_out(theta_j) cos theta_j with
    r_in = s / (1 + exp(-k (theta_y - a))) and r_out = s / (1 + exp(k (theta_j - b))) held constant.
    The published overlapping-patch model uses a = 0.90, b = 1.20.

    Source: Zhong et al., TIP 2021, arXiv:2205.12010.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scale: float = 64.0,
        k: float = 80.0,
        a: float = 0.80,
        b: float = 1.22,
    ) -> None:
        super().__init__(in_features, out_features, scale)
        self.k, self.a, self.b = k, a, b

    def item_loss(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """[N]; can be negative."""
        cosine = self.cosine(embedding)
        true = F.one_hot(labels, self.out_features).bool()
        with torch.no_grad():
            angle = cosine.clamp(-1, 1).acos()  # [N, C] radians
            pull, push = torch.sigmoid(self.k * (angle - self.a)), torch.sigmoid(self.k * (self.b - angle))
            weight = self.scale * torch.where(true, -pull, push)
        return (weight * cosine).sum(1)


HEADS: dict[str, type[nn.Module]] = {"softmax": Softmax, "cosface": CosFace, "arcface": ArcFace, "sface": SFace}


def build_head(name: str, in_features: int, out_features: int) -> nn.Module:
    """A head by its name, upper or lower case. Raises UserError for an unknown one."""
    if name.lower() not in HEADS:
        raise UserError(f"`head` must be one of {', '.join(HEADS)}, got {name}.")
    return HEADS[name.lower()](in_features, out_features)
