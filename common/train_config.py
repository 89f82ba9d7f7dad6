"""The knobs of the loop, and which of them decide the numbers of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from common.knobs import Checked, knob

EPOCHS = 5  # of a phase whose length is not given
LIMIT = 300  # steps that such a phase may take where it ends once it has settled and 5 epochs are fewer


@dataclass
class TrainConfig(Checked):
    """The swap: what every domain's swap.py accepts."""

    method: str = knob("mask_replay", "how to learn and forget: a file name in common/methods")
    epochs: int | None = knob(
        None,
        f"epochs per phase; an epoch is one pass over the keep set (default: {EPOCHS}, or until settled, see --until)",
        least=1,
    )
    steps: int = knob(0, "steps per phase instead of epochs, when not 0", least=0)
    forget_steps: int = knob(
        0, "steps per forget phase where they differ from those of a learn phase, when not 0", least=0
    )
    until: str = knob(
        "auto",
        "when a phase ends: after its steps; or once nothing moves any more on training items held out for it, its "
        "steps being the limit (settled); auto: after its steps where a length is given, else once settled",
        ["auto", "steps", "settled"],
    )
    settled_window: int = knob(25, "steps between two looks of --until settled", least=1)
    settled_share: float = knob(
        0.01,
        "settled: largest mean share of the answers on held-out items that forgotten classes keep",
        least=0,
        most=1,
    )
    settled_change: float = knob(
        0.02, "settled: largest change of a held-out loss over a window, in parts of 1 + loss", least=0
    )
    batch_size: int = knob(32, "target items per step, and as many keep items, on each rank", least=1, most=65_536)
    accumulate: int = knob(1, "batches whose gradients are averaged before a step", least=1, most=65_536)
    lr: float = knob(1e-3, "AdamW peak learning rate", above=0, most=1000)
    forget_lr: float = knob(
        0.0,
        "peak learning rate of forget phases where it differs from that of a learn phase, "
        "when not 0 (lower ones drift less from what was learned before)",
        least=0,
        most=1000,
    )
    min_lr: float = knob(1e-5, "learning rate at the end of a cosine schedule", least=0)
    schedule: str = knob("cosine", "learning rate over a phase", ["cosine", "constant"])
    schedule_per_epoch: bool = knob(False, "move the cosine once per epoch, as published")
    warmup: float = knob(0.05, "share of a phase's steps with linear warm-up, 0..1", least=0, below=1)
    weight_decay: float = knob(0.05, "decay of matrices; vectors and head rows have none", least=0)
    clip: float = knob(1.0, "largest gradient norm; 0 does not clip", least=0)
    carry_optimizer: bool = knob(False, "keep Adam's moments from phase to phase, as published")
    train_head_rows: bool = knob(True, "train the head rows of classes to be learned (published: frozen)")
    average_decay: float = knob(
        0.0,
        "each phase ends with the moving average of what trains in its steps, with this "
        "share of the past (0.999); 0: with the last weights",
        least=0,
        below=1,
    )
    precision: str = knob(
        "auto",
        "number format of the forward pass; auto is bf16 where the hardware has it",
        ["auto", "fp32", "bf16", "fp16"],
    )
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")
    threads: int = knob(
        0,
        "CPU threads; 0 leaves the number to torch (1 is best for tiny models)",
        least=0,
        most=4 * (os.cpu_count() or 1),
    )
    seed: int = knob(0, "seed of data order, adapters, dropout and augmentation", least=0, most=2**63 - 1)
    eval_every: int = knob(0, "also score every so many epochs; 0 only at phase ends", least=0)
    curve_points: int = knob(
        8, "times a phase scores a small sample of test items, for the report's curves; 0: never", least=0
    )
    save_every: float = knob(60.0, "seconds between saved states (a killed run goes on from the last)", least=0)
    gallery: int = knob(4, "test pictures per group in the report", least=0, most=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.until == "auto" and (self.epochs or self.steps):
            self.until = "steps"
        if self.until != "auto":
            self.epochs = self.epochs or EPOCHS

    def given(self, action: str) -> int:
        """Steps of a phase, where they are given as such; else 0."""
        return (self.forget_steps if action == "forget" else 0) or self.steps

    def length(self, action: str, per_epoch: int, settles: bool = False) -> int:
        """Steps of a phase, or the most it may have if it `settles`."""
        if self.epochs or self.given(action):
            return self.given(action) or per_epoch * (self.epochs or 0)
        return max(per_epoch * EPOCHS, LIMIT if settles else 0)


NOT_IDENTITY = ("save_every", "gallery", "curve_points")  # settings that change no number of a run
NEWER = {  # left out at these values, so that records from before them stay equal
    "average_decay": 0.0, "forget_steps": 0, "forget_lr": 0.0,
    "until": "steps", "settled_window": 25, "settled_share": 0.01, "settled_change": 0.02,
}  # fmt: skip
