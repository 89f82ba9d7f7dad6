"""The plain multi-layer perceptron of DINO's box heads."""

from torch import Tensor, nn
from torch.nn import functional as F

from common.layers import Linear


class MLP(nn.Module):
    """Linear layers with ReLU between them; keys `layers.N.{weight,bias}` as published."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs] + [hidden] * (depth - 1) + [outputs]
        self.layers = nn.ModuleList(Linear(i, o) for i, o in zip(sizes[:-1], sizes[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
