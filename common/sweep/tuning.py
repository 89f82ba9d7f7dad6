"""Settings chosen by Optuna: the same number of trials for every row, each an ordinary run."""

from __future__ import annotations


def tune(sweep, trials, config):
    raise NotImplementedError
