"""The flags of swap and pretrain: their parser, and the settings that a command line gives."""

from __future__ import annotations

from collections.abc import Sequence

from common.config import Parser
from common.session import Session
from common.settings import Settings, settings_from, settings_parser

EVERYDAY = ("data", "learn_data", "checkpoint", "learn", "forget", "retain", "order", "method", "epochs", "batch_size", "lr",
            "seed", "output_dir", "overwrite", "dry_run", "config")  # fmt: skip


def run_parser(session: Session, verb: str, argv: Sequence[str]) -> Parser:
    """The parser of swap or pretrain; see `settings_parser`."""
    text = f"{session.summaries[verb]}\n\nExample:\n  {session.examples[verb]}\n\n"
    text += "Stopped or killed? The same command goes on where it was."
    kinds = session.run_kinds(verb)
    defaults = session.defaults_for(verb, argv)
    reference = session.reference if verb == "swap" else None
    parser = settings_parser(f"ks-{session.name} {verb}", text, kinds, argv, reference, **defaults)
    session.extend(parser, argv)
    parser.show_first((*EVERYDAY, *session.everyday, "reference", *(("classes",) if verb == "pretrain" else ())))
    return parser


def parsed(session: Session, verb: str, argv: Sequence[str]) -> Settings:
    """The settings of swap or pretrain from flags."""
    args = vars(run_parser(session, verb, argv).parse_args(list(argv)))
    if args["dry_run"]:
        args |= {"feature_cache": "none", **dict.fromkeys(session.cache_flags, "")}
    return settings_from(session.run_kinds(verb), args)
