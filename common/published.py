"""The command lines of published programs, translated into ours by a table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from common.session import Session
from common.trainer import train

Values = list[str]
Rule = str | None | Callable[[Values], list[str]]


class Translation(NamedTuple):
    """How published flags become ours.

    rules:  published name without dashes, "_" for "-" -> our flag, which takes over its values; None where it has no
            effect here; or a function of its values that gives flags of ours. Flags without a rule are left as they are.
    first:  flags of ours that come before all others.
    """

    rules: Mapping[str, Rule]
    first: Sequence[str] = ()


def translate(argv: Sequence[str], translation: Translation) -> tuple[list[str], list[str]]:
    """(our command line, published flags in it that have no effect here)."""
    ours, ignored = list(translation.first), []
    words = [part for word in argv for part in _split(word, translation.rules)]
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        rule = translation.rules.get(_name(word), word) if word.startswith("-") else word
        values: Values = []
        while word.startswith("-") and position < len(words) and not _is_flag(words[position]):
            values.append(words[position])
            position += 1
        if rule is None:
            ignored.append(word)
        else:
            ours += rule(values) if callable(rule) else [rule, *values]
    return ours, ignored


def switch(*flags: str) -> Callable[[Values], list[str]]:
    """A rule that gives these words, whatever the values."""
    return lambda values: list(flags)


def several(*flags: str) -> Callable[[Values], list[str]]:
    """A rule that hands one published value to several flags of ours."""
    return lambda values: [word for flag in flags for word in (flag, *values)]


def run(session: Session, ours: list[str], ignored: Sequence[str]) -> None:
    """Runs a translated command line and says which published flags have no effect."""
    if ignored:
        print(f"without effect here: {', '.join(ignored)}", file=sys.stderr)
    train(session, session.tidy(ours), "swap")


def _split(word: str, rules: Mapping[str, Rule]) -> list[str]:
    """`--flag=value` in two, where the flag is a published one."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and word.startswith("-") and _name(name) in rules else [word]


def _name(word: str) -> str:
    return word.lstrip("-").replace("-", "_")


def _is_flag(word: str) -> bool:
    """Whether a word is a flag, not a negative number."""
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] != "."
