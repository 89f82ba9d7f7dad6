"""The published scripts' flags, translated: `train/exchange_fltf.py` and `train/exchange_fftl.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from common import cli, published
from common.config import read_yaml
from common.errors import UserError
from common.published import Translation, Values, several
from ks_classification.data.images import folders
from ks_classification.session import SESSION

FLAGS = read_yaml(Path(__file__).with_suffix(".yaml"))
RETAIN, FORGET = "--retain-folder", "--forget-folder"  # these two become --data


def _learn(values: Values) -> list[str]:
    return ["--learn-data", *values, "--learn", ",".join(folders(values[0]).classes)]


def _forget(values: Values) -> list[str]:
    return [FORGET, *values, "--forget", ",".join(folders(values[0]).classes)]


def _device(values: Values) -> list[str]:
    numbers = [number for value in values for number in value.replace(",", " ").split()]
    return ["--device", "cpu" if values == ["cpu"] else f"cuda:{numbers[0]}" if numbers else "auto"]


RULES = {
    **dict.fromkeys(FLAGS["ignored"]),
    **FLAGS["renamed"],
    "beta": several("--keep-weight", "--forget-weight"),
    **dict.fromkeys(("workers_id", "w"), _device),
    "learnpath": _learn,
    "forgetpath": _forget,
}


def translate(argv: list[str], order: str) -> tuple[list[str], list[str]]:
    """(flags of our swap.py, published flags that have no effect here).

    Raises:
        UserError: one of the three folders is not named.
    """
    ours, ignored = published.translate(argv, Translation(RULES, ("--reference", "--order", order)))
    places = []
    for word, name in ((RETAIN, "retain"), (FORGET, "forget")):
        if word not in ours or "--learn-data" not in ours:
            raise UserError(
                f"the published script takes --learnpath, --forgetpath and --retainpath; --{name}path is missing."
            )
        at = ours.index(word)
        places.append(ours.pop(at + 1))
        ours.pop(at)
    return [*ours, "--data", ",".join(places)], ignored


def main(order: str) -> None:
    """Runs the published command line through our swap and says which of its flags have no effect."""
    sys.exit(cli.main(lambda argv: published.run(SESSION, *translate(argv, order))))
