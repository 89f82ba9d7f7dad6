"""Everything that exists for speed on a CPU only: products by oneDNN, a fused feed-forward net, attention, convolutions, maps with channels last, memory kept for reuse, outputs kept on disk.

`common.layers` is the only module that imports this package. Without the package, or with KS_FAST=0 in the
environment, plain torch computes the same up to rounding.
"""

from common.fast.allocator import keep_freed_memory
from common.fast.attention import attention
from common.fast.convolution import convolution
from common.fast.ffn import feed_forward
from common.fast.folded import folded
from common.fast.layout import channels_last, paired
from common.fast.products import Linear, linear, short_softmax, sum_first, switch, use_fast_linears
from common.fast.store import Store, check_folder

__all__ = [
    "Linear",
    "Store",
    "attention",
    "channels_last",
    "convolution",
    "feed_forward",
    "folded",
    "keep_freed_memory",
    "linear",
    "paired",
    "check_folder",
    "short_softmax",
    "sum_first",
    "switch",
    "use_fast_linears",
]
