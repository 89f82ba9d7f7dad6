"""Fine-tuning: the replay loss on all parameters, without adapters."""

from __future__ import annotations

from common.methods.replay import Replay


class Finetune(Replay):
    """Replay with every parameter of the model trained: what adapters are compared with."""

    trains = "all"


METHOD = Finetune
