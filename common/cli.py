"""What every entry script shares: one-line errors with exit code 2, and the flags of a swap."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from common import distributed, methods
from common.config import Parser, add_flags, apply_yaml, from_args, help_formatter, read_yaml
from common.domain import Domain
from common.errors import UserError
from common.layers import keep_freed_memory
from common.lora import LoraConfig
from common.methods._base import Method
from common.plan import Plan, PlanConfig
from common.record import RecordConfig, Run
from common.state import Interrupted
from common.train_config import TrainConfig, settings_of
from common.trainer import Trainer

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EEXIST, errno.ENOTDIR)


def main(body: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs `body(argv)`; a user's mistake becomes one line on stderr and exit code 2, Ctrl-C becomes 130."""
    try:
        return body(list(sys.argv[1:] if argv is None else argv)) or 0
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # a connection, not a file
        advice = "; free space or choose another --output-dir" if error.errno in NO_ROOM else ""
        print(f"error: {error.filename or 'cannot write'}: {error.strerror}{advice}.", file=sys.stderr)
        return 2


class Swap(NamedTuple):
    """What the flags of a swap.py say.

    domain: the domain's own configs, in the order of `domain_configs`; flags: everything as given, for the record.
    """

    domain: list[Any]
    plan: PlanConfig
    train: TrainConfig
    lora: LoraConfig
    method: type[Method]
    method_config: Any
    record: RecordConfig
    flags: dict[str, Any]


def swap_parser(
    prog: str,
    description: str,
    domain_configs: Sequence[type],
    argv: Sequence[str],
    reference: Path | None = None,
    **defaults: object,
) -> Parser:
    """The parser of a domain's swap.py: the domain's own flags, the swap's, and those of the chosen method.

    Args:
        domain_configs: dataclasses of the domain (data and model), one heading each.
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
        text = "the published settings as defaults, bugs and every --published-* flag included (configs/reference.yaml)"
        parser.add_argument("--reference", action="store_true", help=text)
    for config in (*domain_configs, PlanConfig, TrainConfig, LoraConfig):
        add_flags(parser, config, **defaults)
    add_flags(parser, methods.load(method).Config, f"--method {method}", **defaults)
    add_flags(parser, RecordConfig, **defaults)
    if known.reference and reference:  # what the published code of any method does differently
        for item in fields(methods.load(method).Config):
            if item.name.startswith("published_"):
                parser.set_defaults(**{item.name: True})
    for file in files:
        other = read_yaml(file).get("method", method)
        apply_yaml(parser, file, skip=_knobs(other) - _knobs(method))
    return parser


def _knobs(method: str) -> set[str]:
    """The flags of a method, by field name."""
    return {item.name for item in fields(methods.load(str(method)).Config)}


def swap_flags(parser: Parser, argv: Sequence[str], domain_configs: Sequence[type]) -> Swap:
    """The parsed flags as configs, each with its own checks run."""
    args = parser.parse_args(list(argv))
    method = methods.load(args.method)
    return Swap(
        [from_args(config, args) for config in domain_configs],
        from_args(PlanConfig, args),
        from_args(TrainConfig, args),
        from_args(LoraConfig, args),
        method,
        from_args(method.Config, args),
        from_args(RecordConfig, args),
        vars(args),
    )


def folder_of(domain: str, plan: Plan, swap: Swap) -> Path:
    """The folder of the run: --output-dir, or results/<domain>/<plan, method and seed>."""
    return Path(swap.record.output_dir or f"results/{domain}/{plan.name}-{swap.train.method}-seed{swap.train.seed}")


def check_folder(domain: str, plan: Plan, swap: Swap) -> None:
    """Raises UserError when the run's folder holds a run with other settings; for use before data is read."""
    if not swap.record.overwrite:
        known = settings_of(plan, swap.train, swap.lora, swap.method_config)
        Run(folder_of(domain, plan, swap)).check({"domain": domain, **known})


def carry_out(domain: Domain, plan: Plan, swap: Swap) -> Trainer:
    """Runs the plan in its folder and writes report.html; the trainer, for what the domain still wants to save."""
    from common import references

    keep_freed_memory()

    def make(plan: Plan, folder: Path, config: Any) -> Trainer:
        run = Run(folder, swap.flags)
        return Trainer(domain, plan, swap.train, swap.lora, swap.method, config, run, swap.record)

    if swap.plan.with_references:
        references.reference_plans(plan)  # what cannot be compared is refused before anything is trained
    trainer = make(plan, folder_of(domain.name, plan, swap), swap.method_config)
    trainer.swap()
    run, folders = trainer.run, [trainer.run.folder]
    if swap.plan.with_references:
        plain = references.unlearns_nothing(swap.method_config)
        references.compare(trainer, lambda plan, name: make(plan, run.path(name), plain))
        folders += [run.path("reference-retrain"), run.path("reference-original")]
    if distributed.is_main():
        if swap.record.report:
            from common import report

            report.write(folders, run.path("report.html"))
        print(f"results in {run.folder}" + (f"; open {run.path('report.html')}" if swap.record.report else ""))
    return trainer
