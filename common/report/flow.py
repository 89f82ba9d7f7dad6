"""Where the answers on every class went: ribbons from classes to answers before and after a run, and the same in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup

from common.record import NOTHING
from common.report.runs import RunRecord
from common.report.svg import LETTER, cut
from common.report.templates import template

SHOWN = 20  # classes with a row; above, those whose answers moved most
MOVED, RISE = 0.25, 0.15  # share of a class called another one, and by how much more than before, that is told in words
TOLD = 6  # sentences
SEEN = 0.05  # share of a class from which on an answer outside the rows has a node of its own
THIN = 0.01  # a thinner ribbon is not drawn
REST = "other classes"
UNIT, GAP, LEAST = 20.0, 6.0, 12.0  # height of a class, space between two, least height of a node: pixels
WIDTH, NAME = 460.0, 17  # width of the picture, letters of a name
GREY = -1.0  # in the place of a hue


class Move(NamedTuple):
    """A class whose items are called another one: shares before and after, 0..1."""

    name: str
    answer: str
    before: float
    after: float


@dataclass
class Node:
    """A class or an answer: its name, hue, upper edge and height in pixels."""

    name: str
    hue: float
    y: float
    height: float
    used: float = field(default=0.0)  # of the height, by ribbons


class Ribbon(NamedTuple):
    """A share of a class's items: an SVG path, the hue of the class, whether the answer is right, and in words."""

    path: str
    hue: float
    right: bool
    words: str


def moves(run: RunRecord) -> list[Move]:
    """Classes called another one more often than before the run: forgotten ones first, then by share."""
    if len(run.moments) < 2:
        return []
    before, after = run.answers(0), run.answers(-1)
    role = {c: run.role(group) for group, members in run.groups.items() for c in members}
    found = [
        Move(name, answer, before.get(name, {}).get(answer, 0.0), share)
        for name, answers in after.items()
        for answer, share in answers.items()
        if answer != name and share >= MOVED
    ]
    found = [move for move in found if move.after - move.before >= RISE]
    return sorted(found, key=lambda move: (role.get(move.name) != "forget", -move.after))


def sentences(run: RunRecord) -> list[str]:
    """The largest moves in words."""
    found = moves(run)
    told = [words(move, run.answered) for move in found[:TOLD]]
    return [*told, *([f"{len(found) - TOLD} more classes moved."] if len(found) > TOLD else [])]


def words(move: Move, answered: str) -> str:
    """'92 % of the test images of tench are now called golf ball (before: 0 %).'"""
    now = "covered by no prediction" if move.answer == NOTHING else f"called {move.answer}"
    return (
        f"{100 * move.after:.0f} % of the {answered} of {move.name} are now {now} (before: {100 * move.before:.0f} %)."
    )


def flow(run: RunRecord, hues: Mapping[str, float]) -> dict[str, Any] | None:
    """Two pictures, before and after; None without answers of two moments.

    Args:
        hues: of the groups.

    Returns:
        {"panels": (title, svg) each, "left_out": number of classes without a row}.
    """
    if len(run.moments) < 2 or not (run.answers(0) and run.answers(-1)):
        return None
    colour = {str(c): hues[group] for group, members in run.groups.items() for c in members}
    both = run.answers(0), run.answers(-1)
    shown = _chosen(list(colour), *both)
    titles = ("Before", f"After {run.moments[-1].title}")
    kept = [{name: answers[name] for name in shown if name in answers} for answers in both]
    panels = [(title, picture(own, list(colour), colour, title)) for title, own in zip(titles, kept, strict=True)]
    return {"panels": panels, "left_out": len([c for c in colour if c in both[1]]) - len(shown)}


def picture(
    answers: Mapping[str, Mapping[str, float]], order: Sequence[str], colour: Mapping[str, float], title: str
) -> Markup:
    """Ribbons from rows to what their items are called.

    Args:
        answers: row -> answer -> share.
        order: of the answers, as far as it is told; others follow by name.
        colour: row or answer -> hue; grey without one.
        title: what assistive technology reads before the commonest answer of each row.
    """
    longest = max(len(node.name) for side in _layout(answers, order, colour, (0, 1))[:2] for node in side)
    margin = 24 + LETTER * min(NAME, longest)
    ends = margin, WIDTH - margin
    rows, nodes, ribbons = _layout(answers, order, colour, ends)
    height = max(node.y + max(node.height, LEAST) for node in (*rows, *nodes)) + GAP
    label = f"{title}: " + "; ".join(_largest(name, own) for name, own in answers.items())
    draw = template("flow.svg").module.flow  # type: ignore[attr-defined]  # a macro
    return Markup(draw(rows, nodes, ribbons, (WIDTH, height, *ends), label, _short))


def _largest(name: str, answers: Mapping[str, float]) -> str:
    answer, share = max(answers.items(), key=lambda pair: pair[1], default=(NOTHING, 0.0))
    return f"{name} is called {answer} {100 * share:.0f} %"


def _short(name: str) -> str:
    return cut(name, NAME)


def _chosen(names: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The classes with a row, in the order of the plan."""
    known = [name for name in names if name in after]

    def moved(name: str) -> float:
        old, new = before.get(name, {}), after[name]
        return -sum(abs(old.get(a, 0.0) - new.get(a, 0.0)) for a in sorted({*old, *new}))

    kept = set(sorted(known, key=moved)[:SHOWN])
    return [name for name in known if name in kept]


def _layout(
    answers: Mapping[str, Mapping[str, float]],
    order: Sequence[str],
    colour: Mapping[str, float],
    ends: tuple[float, float],
) -> tuple[list[Node], list[Node], list[Ribbon]]:
    """(classes on the left, answers on the right, ribbons between them)."""
    own = {answer for shares in answers.values() for answer, share in shares.items() if share >= SEEN}
    seen = [*order, *sorted(own.difference(order, [NOTHING]))]
    names = [name for name in seen if name in answers or name in own]
    flows = [(name, _places(shares, names)) for name, shares in answers.items()]
    tail = [name for name in (REST, NOTHING) if any(places.get(name) for _, places in flows)]
    names += tail
    rows = _stacked([(name, UNIT) for name in answers], colour)
    nodes = _stacked([(n, UNIT * sum(places.get(n, 0.0) for _, places in flows)) for n in names], colour)
    ribbons = []
    by_name = {node.name: node for node in nodes}
    for row, (name, places) in zip(rows, flows, strict=True):
        for answer in names:
            share = places.get(answer, 0.0)
            if share < THIN:
                continue
            words = f"{name} called {answer}: {100 * share:.0f} %"
            path = _path(row, by_name[answer], UNIT * share, ends)
            ribbons.append(Ribbon(path, row.hue, answer == name, words))
    return rows, nodes, sorted(ribbons, key=lambda ribbon: not ribbon.right)


def _places(shares: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The shares of the nodes; what has no node, or was too little to be recorded, under REST."""
    found = {name: share for name, share in shares.items() if name in names or name == NOTHING}
    rest = 1.0 - sum(found.values())
    return found | ({REST: rest} if rest >= THIN else {})


def _stacked(heights: Sequence[tuple[str, float]], colour: Mapping[str, float]) -> list[Node]:
    nodes, y = [], GAP
    for name, height in heights:
        nodes.append(Node(name, colour.get(name, GREY), y, height))
        y += max(height, LEAST) + GAP
    return nodes


def _path(row: Node, node: Node, height: float, ends: tuple[float, float]) -> str:
    """A band of this height from what is left of a class to what is left of an answer."""
    a, b, (left, right) = row.y + row.used, node.y + node.used, ends
    row.used, node.used = row.used + height, node.used + height
    middle = sum(ends) / 2
    return (
        f"M{left:.0f} {a:.1f}C{middle:.0f} {a:.1f} {middle:.0f} {b:.1f} {right:.0f} {b:.1f}V{b + height:.1f}"
        f"C{middle:.0f} {b + height:.1f} {middle:.0f} {a + height:.1f} {left:.0f} {a + height:.1f}Z"
    )
