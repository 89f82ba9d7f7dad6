"""The knobs of the loop, and which of them decide the numbers of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.errors import UserError


@dataclass
class TrainConfig:
    """The swap: what every domain's swap.py accepts."""

    method: str = field(default="gs_lora", metadata={"help": "how to learn and forget: a file name in common/methods"})
    epochs: int = field(default=5, metadata={"help": "epochs per phase; an epoch is one pass over the keep set"})
    steps: int = field(default=0, metadata={"help": "steps per phase instead of epochs, when not 0"})
    forget_steps: int = field(
        default=0, metadata={"help": "steps per forget phase where they differ from those of a learn phase, when not 0"}
    )
    batch_size: int = field(
        default=32, metadata={"help": "target items per step, and as many keep items, on each rank"}
    )
    accumulate: int = field(default=1, metadata={"help": "batches whose gradients are averaged before a step"})
    lr: float = field(default=1e-3, metadata={"help": "AdamW peak learning rate"})
    forget_lr: float = field(
        default=0.0, metadata={"help": "peak learning rate of forget phases where it differs from that of a learn phase, "
                                       "when not 0 (lower ones drift less from what was learned before)"},
    )  # fmt: skip
    min_lr: float = field(default=1e-5, metadata={"help": "learning rate at the end of a cosine schedule"})
    schedule: str = field(
        default="cosine", metadata={"help": "learning rate over a phase", "choices": ["cosine", "constant"]}
    )
    schedule_per_epoch: bool = field(default=False, metadata={"help": "move the cosine once per epoch, as published"})
    warmup: float = field(default=0.05, metadata={"help": "share of a phase's steps with linear warm-up, 0..1"})
    weight_decay: float = field(default=0.05, metadata={"help": "decay of matrices; vectors and head rows have none"})
    clip: float = field(default=1.0, metadata={"help": "largest gradient norm; 0 does not clip"})
    carry_optimizer: bool = field(
        default=False, metadata={"help": "keep Adam's moments from phase to phase, as published"}
    )
    train_head_rows: bool = field(
        default=True, metadata={"help": "train the head rows of classes to be learned (published: frozen)"}
    )
    average_decay: float = field(
        default=0.0, metadata={"help": "each phase ends with the moving average of what trains in its steps, with this "
                                       "share of the past (0.999); 0: with the last weights"},
    )  # fmt: skip
    precision: str = field(
        default="auto", metadata={"help": "number format of the forward pass; auto is bf16 where the hardware has it",
                                  "choices": ["auto", "fp32", "bf16", "fp16"]},
    )  # fmt: skip
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N"})
    threads: int = field(
        default=0, metadata={"help": "CPU threads; 0 leaves the number to torch (1 is best for tiny models)"}
    )
    seed: int = field(default=0, metadata={"help": "seed of data order, adapters, dropout and augmentation"})
    eval_every: int = field(default=0, metadata={"help": "also score every so many epochs; 0 only at phase ends"})
    save_every: float = field(
        default=60.0, metadata={"help": "seconds between saved states (a killed run goes on from the last)"}
    )
    gallery: int = field(default=4, metadata={"help": "test pictures per group in the report"})

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"`--{name.replace('_', '-')}` must be at least 1, got {getattr(self, name)}.")
        for name in ("steps", "forget_steps", "threads", "weight_decay", "clip", "eval_every", "gallery", "min_lr",
                     "forget_lr", "save_every"):  # fmt: skip
            if getattr(self, name) < 0:
                raise UserError(f"`--{name.replace('_', '-')}` must not be negative, got {getattr(self, name)}.")
        if not self.lr > 0:
            raise UserError(f"`--lr` must be above 0, got {self.lr}.")
        if not 0 <= self.average_decay < 1:
            raise UserError(f"`--average-decay` is a share, 0 up to 1, got {self.average_decay}; 0 is off.")
        if not 0 <= self.warmup < 1:
            raise UserError(f"`--warmup` is a share of a phase, 0 up to 1, got {self.warmup}.")


NOT_IDENTITY = ("save_every", "gallery")  # settings that change no number of a run
NEWER = ("average_decay", "forget_steps", "forget_lr")  # left out at 0, so that records from before them stay equal
