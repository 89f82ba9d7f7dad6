"""What every entry script shares: one-line errors with exit code 2, and the flags of a swap."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from common import methods
from common.config import Parser, add_flags, apply_yaml, from_args, help_formatter
from common.errors import UserError
from common.lora import LoraConfig
from common.record import RecordConfig
from common.trainer import Interrupted, TrainConfig


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
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        place = f" at {error.filename}" if error.filename else ""
        print(
            f"error: cannot write{place}: {error.strerror}; free space or choose another --output-dir.",
            file=sys.stderr,
        )
        return 2


def swap_parser(prog: str, description: str, domain_config: type, argv: Sequence[str], **defaults: object) -> Parser:
    """The parser of a domain's swap.py: the domain's own flags, the swap's, and those of the chosen method.

    Args:
        domain_config: dataclass of the domain (data and model).
        argv: looked at for --method, --config and --reference before the real parse, so that --help shows
            the flags of the method that was chosen.
        defaults: the domain's constants, by field name.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--method", default="gs_lora")
    peek.add_argument("--config", default="")
    known, _ = peek.parse_known_args(list(argv))
    parser = Parser(prog=prog, description=description, formatter_class=help_formatter, allow_abbrev=False)
    parser.add_argument("--config", default="", metavar="FILE", help="YAML file of defaults (`flag: value`)")
    add_flags(parser, domain_config, **defaults)
    add_flags(parser, TrainConfig, **defaults)
    add_flags(parser, LoraConfig, **defaults)
    method = known.method
    if known.config:
        from common.config import read_yaml

        method = str(read_yaml(known.config).get("method", method)) if "--method" not in argv else method
    add_flags(parser, methods.load(method).Config, f"--method {method}", **defaults)
    add_flags(parser, RecordConfig, **defaults)
    if known.config:
        apply_yaml(parser, known.config)
    return parser


def swap_configs(parser: Parser, argv: Sequence[str], domain_config: type):
    """(domain config, train config, LoRA config, method, method config, record config) from the flags."""
    args = parser.parse_args(list(argv))
    method = methods.load(args.method)
    return (
        from_args(domain_config, args), from_args(TrainConfig, args), from_args(LoraConfig, args),
        method, from_args(method.Config, args), from_args(RecordConfig, args),
    )  # fmt: skip


def quiet_threads() -> None:
    """Leaves the number of threads to torch, but never more than this process may use."""
    if hasattr(os, "sched_getaffinity"):
        import torch

        torch.set_num_threads(max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0)))))
