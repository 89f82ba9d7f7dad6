"""The published scripts' command line, translated: `swapping_fltf.py` and its three sisters."""

from __future__ import annotations

import sys
from collections.abc import Callable

from common import cli, published
from common.errors import UserError
from common.published import Rule, Translation, Values
from ks_segmentation.session import SESSION
from ks_segmentation.source import PUBLISHED

NEEDED = ("config_file", *PUBLISHED)


def _refused(message: str) -> Callable[[Values], list[str]]:
    """A rule for what another command does."""

    def rule(values: Values) -> list[str]:
        raise UserError(message)

    return rule


def _machines(values: Values) -> list[str]:
    return (
        []
        if values == ["1"]
        else _refused("--num-machines: start swap.py with torchrun --nnodes on every machine.")([])
    )


RULES: dict[str, Rule] = {
    **{name: f"--{name.replace('_', '-')}" for name in NEEDED},
    **dict.fromkeys(("machine_rank", "dist_url", "resume")),
    "num_gpus": "--num-gpus",
    "num_machines": _machines,
    "eval_only": _refused("--eval-only: use semantic-segmentation/evaluate.py with the same flags."),
}


def translate(argv: list[str], order: str) -> tuple[list[str], list[str]]:
    """(flags of our swap.py, published flags that have no effect here).

    Raises:
        UserError: a flag is missing, several machines (use torchrun), or --eval-only (use evaluate.py).
    """
    tidied = SESSION.tidy(argv)  # so that `KEY value` words are not taken for a flag's values
    ours, ignored = published.translate(tidied, Translation(RULES, ("--reference", "--order", order)))
    for name in NEEDED:
        if RULES[name] not in ours:
            raise UserError(
                f"the published script takes {', '.join(str(RULES[n]) for n in NEEDED)}; {RULES[name]} is missing."
            )
    return ours, ignored


def main(order: str) -> None:
    """Runs the published command line through our swap and says which of its flags have no effect."""
    sys.exit(cli.main(lambda argv: published.run(SESSION, *translate(argv, order))))
