"""The knobs of the loop, and which of them decide the numbers of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from common.errors import UserError
from common.knobs import knob
from common.lora import LoraConfig
from common.plan import Plan


@dataclass
class TrainConfig:
    """The swap: what every domain's swap.py accepts."""

    method: str = knob("gs_lora", "how to learn and forget: a file name in common/methods")
    epochs: int = knob(5, "epochs per phase; an epoch is one pass over the keep set")
    steps: int = knob(0, "steps per phase instead of epochs, when not 0")
    forget_steps: int = knob(0, "steps per forget phase where they differ from those of a learn phase, when not 0")
    batch_size: int = knob(32, "target items per step, and as many keep items, on each rank")
    accumulate: int = knob(1, "batches whose gradients are averaged before a step")
    lr: float = knob(1e-3, "AdamW peak learning rate")
    forget_lr: float = knob(
        0.0,
        "peak learning rate of forget phases where it differs from that of a learn phase, "
        "when not 0 (lower ones drift less from what was learned before)",
    )
    min_lr: float = knob(1e-5, "learning rate at the end of a cosine schedule")
    schedule: str = knob("cosine", "learning rate over a phase", ["cosine", "constant"])
    schedule_per_epoch: bool = knob(False, "move the cosine once per epoch, as published")
    warmup: float = knob(0.05, "share of a phase's steps with linear warm-up, 0..1")
    weight_decay: float = knob(0.05, "decay of matrices; vectors and head rows have none")
    clip: float = knob(1.0, "largest gradient norm; 0 does not clip")
    carry_optimizer: bool = knob(False, "keep Adam's moments from phase to phase, as published")
    train_head_rows: bool = knob(True, "train the head rows of classes to be learned (published: frozen)")
    average_decay: float = knob(
        0.0,
        "each phase ends with the moving average of what trains in its steps, with this "
        "share of the past (0.999); 0: with the last weights",
    )
    precision: str = knob(
        "auto",
        "number format of the forward pass; auto is bf16 where the hardware has it",
        ["auto", "fp32", "bf16", "fp16"],
    )
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")
    threads: int = knob(0, "CPU threads; 0 leaves the number to torch (1 is best for tiny models)")
    seed: int = knob(0, "seed of data order, adapters, dropout and augmentation")
    eval_every: int = knob(0, "also score every so many epochs; 0 only at phase ends")
    save_every: float = knob(60.0, "seconds between saved states (a killed run goes on from the last)")
    gallery: int = knob(4, "test pictures per group in the report")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"`--{name.replace('_', '-')}` must be at least 1, got {getattr(self, name)}.")
        if not self.lr > 0:
            raise UserError(f"`--lr` must be above 0, got {self.lr}.")
        if not 0 <= self.average_decay < 1:
            raise UserError(f"`--average-decay` is a share, 0 up to 1, got {self.average_decay}; 0 is off.")
        if not 0 <= self.warmup < 1:
            raise UserError(f"`--warmup` is a share of a phase, 0 up to 1, got {self.warmup}.")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "seed" and not isinstance(value, str) and value < 0:
                raise UserError(f"`--{item.name.replace('_', '-')}` must not be negative, got {value}.")


NOT_IDENTITY = ("save_every", "gallery")  # settings that change no number of a run


def settings_of(plan: Plan, config: TrainConfig, lora_config: LoraConfig, method_config: Any) -> dict[str, Any]:
    """What the flags alone say about a run's numbers: the part of its identity that is known before data is read."""
    train = {k: v for k, v in asdict(config).items() if k not in NOT_IDENTITY}
    for name in ("average_decay", "forget_steps", "forget_lr"):
        if not train[name]:
            del train[name]  # so that records from before it existed stay equal
    return {"plan": plan.record(), "train": train, "lora": asdict(lora_config), "method": asdict(method_config)}
