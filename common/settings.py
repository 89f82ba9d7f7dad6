"""All settings of a run as one object, from flags, from a YAML file, or from Python."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from common import methods
from common.config import Parser, add_flags, apply_yaml, flag, from_values, help_formatter, read_yaml
from common.errors import UserError
from common.frozen import FAST_BLOCKS, FrozenConfig
from common.guard import GuardConfig
from common.launch import LaunchConfig
from common.lora import LoraConfig
from common.methods._base import Method, for_phase
from common.plan import Plan
from common.plan_file import PlanConfig
from common.record import RecordConfig
from common.train_config import NEWER, NOT_IDENTITY, TrainConfig

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)  # of a folder
EVERY = (
    PlanConfig,
    TrainConfig,
    LoraConfig,
    FrozenConfig,
    GuardConfig,
    RecordConfig,
    LaunchConfig,
)  # what the three domains share


@dataclass(frozen=True)
class Settings:
    """What a run shall do.

    configs: the config objects by their class, one per heading of --help; `settings[ImageConfig]` is one of them.
    method:  how to learn and forget; its own config is `method_config`.
    flags:   all values by flag name, for the record.
    model, data: objects given from Python in the place of --checkpoint and --data.
    """

    configs: Mapping[type, Any]
    method: type[Method]
    flags: dict[str, Any]
    model: nn.Module | None = None
    data: Any = None

    def __getitem__(self, kind: type[T]) -> T:
        found: T = self.configs[kind]
        return found

    @property
    def train(self) -> TrainConfig:
        return self[TrainConfig]

    @property
    def lora(self) -> LoraConfig:
        return self[LoraConfig]

    @property
    def record(self) -> RecordConfig:
        return self[RecordConfig]

    @property
    def method_config(self) -> Any:
        return self.configs[self.method.Config]

    def identity(self, plan: Plan) -> dict[str, Any]:
        """What the settings alone say about a run's numbers: the part of its identity known before data is read."""
        train = {k: v for k, v in asdict(self.train).items() if k not in NOT_IDENTITY and v != NEWER.get(k)}
        method = asdict(self.method_config)
        guard = asdict(self[GuardConfig])
        return {"plan": plan.record(), "train": train, "lora": asdict(self.lora), "method": method, "guard": guard}

    def check_lists(self, plan: Plan) -> None:
        """Raises UserError for settings of one number per phase that do not fit the plan."""
        for item in fields(self.method_config):
            if item.metadata.get("per_phase"):
                for_phase(getattr(self.method_config, item.name), 0.0, plan.phases[-1], flag(item.name))

    def folder(self, domain: str, plan: Plan) -> Path:
        """The folder of the run: --output-dir, or results/<domain>/<plan, method and seed>."""
        if not self.record.output_dir and (not NAME.fullmatch(plan.name) or ".." in plan.name):
            raise UserError(
                f"plan name {plan.name!r} becomes the name of a folder: letters, digits and ._- only; or give --output-dir."
            )
        default = f"results/{domain}/{plan.name}-{self.train.method}-seed{self.train.seed}"
        return Path(self.record.output_dir or default)


def settings_from(kinds: Sequence[type], flags: Mapping[str, Any], **given: Any) -> Settings:
    """The settings that values by flag name describe; what is not named has its default. Each config checks itself.

    Args:
        kinds: dataclasses of the domain, besides those that all domains share.
        given: `model` and `data` objects.
    """
    method = methods.load(flags.get("method", TrainConfig.method))
    configs = {kind: from_values(kind, flags) for kind in (*kinds, *EVERY, method.Config)}
    if configs[FrozenConfig].fast:
        if method.scope(configs[method.Config]) != "adapter":
            raise UserError("`--fast` adapts the last blocks of a frozen model, but this method trains whole weights.")
        configs[LoraConfig].lora_blocks = configs[LoraConfig].lora_blocks or FAST_BLOCKS
    return Settings(configs, method, dict(flags), **given)


def settings_parser(
    prog: str,
    description: str,
    kinds: Sequence[type],
    argv: Sequence[str],
    reference: Path | None = None,
    **defaults: Any,
) -> Parser:
    """The parser of swap and pretrain: the domain's own flags, those of every swap, and those of the chosen method.

    Args:
        kinds: dataclasses of the domain (data and model), one heading each.
        argv: looked at for --method, --config and --reference before the real parse, so that --help shows
            the flags of the method that was chosen and files can set defaults.
        reference: YAML file of the published settings, which --reference makes the defaults.
        defaults: the domain's constants, by field name.
    """
    peek = Parser(prog=prog, add_help=False, allow_abbrev=False)
    peek.add_argument("--method")
    peek.add_argument("--config", default="")
    peek.add_argument("--reference", action="store_true")
    known, _ = peek.parse_known_args(list(argv))
    files = ([str(reference)] if known.reference and reference else []) + ([known.config] if known.config else [])
    chosen = [str(read_yaml(file)["method"]) for file in files if "method" in read_yaml(file)]
    method = known.method or (chosen[-1] if chosen else defaults.get("method", TrainConfig.method))
    parser = Parser(prog=prog, description=description, formatter_class=help_formatter, allow_abbrev=False)
    parser.add_argument("--config", default="", metavar="FILE", help="YAML file of defaults (`flag: value`)")
    if reference:
        text = "the published settings as defaults, bugs and every --published-* flag included (reference.yaml)"
        parser.add_argument("--reference", action="store_true", help=text)
    for kind in (*kinds, PlanConfig, TrainConfig, LoraConfig, FrozenConfig, GuardConfig):
        add_flags(parser, kind, **defaults)
    add_flags(parser, methods.load(method).Config, f"--method {method}", **defaults)
    add_flags(parser, RecordConfig, **defaults)
    add_flags(parser, LaunchConfig, **defaults)
    if known.reference and reference:  # what the published code of any method does differently
        published = [n for n in _knobs(method) if n.startswith("published_")]
        parser.set_defaults(**dict.fromkeys(published, True))
    for file in files:
        other = read_yaml(file).get("method", method)
        apply_yaml(parser, file, skip=_knobs(other) - _knobs(method))
    return parser


def _knobs(method: str) -> set[str]:
    """The flags of a method, by field name."""
    return {item.name for item in fields(methods.load(str(method)).Config)}
