"""What a proof may say: four levels, in words, each with budget, interval and references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.evaluation.figures import Figure
from common.evaluation.intervals import Estimate

REVERSIBLE, SUPPRESSED, NOT_RECOVERED, INCONCLUSIVE = "reversible", "suppressed", "not recovered", "inconclusive"
ANSWERED = 0.1  # of the original's accuracy; above, the output itself still names the classes
ENOUGH = 3  # references
WIDE = 0.15  # half-width of an interval above which a figure decides nothing
LEVEL = 0.025  # one-sided, of all headline figures together
FALSE_ALARMS = {3: 9, 5: 5, 8: 3}  # references -> percent; `python -m common.evaluation validate --models 40`
UNWANTED = "none was wanted (--references 0)"
FEW_ITEMS = 10  # test items of a class below which a warning is due


@dataclass(frozen=True)
class Verdict:
    """level: one of the four; headline: its words; text: the sentence with numbers."""

    level: str
    headline: str
    text: str

    def record(self) -> dict[str, str]:
        """Plain data."""
        return asdict(self)


def verdicts(
    figures: Sequence[Figure], not_run: Mapping[str, str], budget: str, adapter: bool, no_reference: str
) -> list[Verdict]:  # fmt: skip
    """All that can be said, the most serious first.

    Args:
        not_run: attack -> why; adapter: whether the result lies beside its base as an adapter.
        no_reference: why there is none; "" where there are.
    """
    headlines = [f for f in figures if f.headline]
    found = [_reversible(figures)] if adapter else []
    answered = [f for f in headlines if f.attack == "output" and _answered(f)]
    flagged = above(headlines)
    if answered:
        found.append(_suppressed("Not even suppressed at the output.", answered[0]))
    elif flagged:
        worst = max(flagged, key=lambda f: f.leak.value if f.leak else f.result.value)
        found.append(_suppressed("Suppressed at the output.", worst, [f for f in flagged if f is not worst]))
    else:
        found.append(_open(headlines, not_run, budget, no_reference))
    return found


def above(figures: Sequence[Figure]) -> list[Figure]:
    """The headline figures of attacks that stand above every reference, by the probabilities `Figure.chance`.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979, at LEVEL over all of them: as many as there are, the
    smallest must be below LEVEL / m, the next below LEVEL / (m - 1), and so on until one is not.
    """
    tested = sorted(
        (f for f in figures if f.headline and f.attack != "output" and f.chance is not None),
        key=lambda f: f.chance or 0.0,
    )
    found: list[Figure] = []
    for left, figure in zip(range(len(tested), 0, -1), tested, strict=True):
        if (figure.chance or 0.0) > LEVEL / left:
            break
        found.append(figure)
    return found


def errors(references: int) -> str:
    """What is known of false alarms, in words."""
    if not references:
        return ""
    text = f"They are tested together against the highest reference (Holm, {100 * LEVEL:g} %)."
    measured = [share for count, share in FALSE_ALARMS.items() if count <= references]
    if not measured:
        return text
    return (
        f"{text} With {references} references, about {measured[-1]} of 100 models that never saw the classes are still "
        "called suppressed (measured on synthetic data)."
    )


def _reversible(figures: Sequence[Figure]) -> Verdict:
    before = next((f.original for f in figures if f.attack == "output" and f.original is not None), None)
    text = "The result is an adapter beside its base model: whoever holds both takes it off and has the original again"
    text += f", which names {percent(before)} of the forgotten classes' test items." if before else "."
    return Verdict(REVERSIBLE, "Reversible by construction.", text)


def _answered(figure: Figure) -> bool:
    original = figure.original.value if figure.original else 1.0
    return figure.result.low > ANSWERED * original


def _suppressed(headline: str, worst: Figure, others: Sequence[Figure] = ()) -> Verdict:
    who = {"output": "the model itself names", "weights": f"with its weights rounded ({worst.name}) the model names"}
    attacker = who.get(worst.attack, f"a {worst.attack} attacker ({_short(worst)}) recovers")
    text = f"{attacker[0].upper()}{attacker[1:]} {percent(worst.result)} of the forgotten classes' test items"
    if worst.references:
        text += f"; models that never saw them {cloud(worst.references)}"
    if worst.leak:
        text += f"; leak {worst.leak.value:.2f} {_interval(worst.leak, 1)}"
    if others:
        text += ". Also above every reference: " + "; ".join(
            f"{f.attack} ({_short(f)}) {percent(f.result)} against {cloud(f.references)}" for f in others
        )
    return Verdict(SUPPRESSED, headline, text + ".")


def _short(figure: Figure) -> str:
    """The name of a figure; of a prototype only the shots, for what counts of it is about one strength."""
    return figure.name.rpartition(", ")[2] if figure.attack == "prototype" else figure.name


def _open(headlines: Sequence[Figure], not_run: Mapping[str, str], budget: str, no_reference: str) -> Verdict:
    compared = [f for f in headlines if f.references]
    count = min((len(f.references) for f in compared), default=0)
    wide = [f for f in compared if (f.result.high - f.result.low) / 2 > WIDE]
    headline = "Inconclusive."
    if not compared:
        return Verdict(INCONCLUSIVE, headline, f"No clean reference: {no_reference or UNWANTED}.{advice(no_reference)}")
    if count < ENOUGH:
        return Verdict(
            INCONCLUSIVE, headline, f"{count} reference{'' if count == 1 else 's'}: at least {ENOUGH} are needed."
        )
    if wide:
        text = f"Too few test items: {wide[0].attack} ({_short(wide[0])}) stands at {percent(wide[0].result)} of {wide[0].n}."
        return Verdict(INCONCLUSIVE, headline, text)
    attacks = ", ".join(dict.fromkeys(f.attack for f in compared))
    text = f"Not recovered beyond {count} retrained models by the attacks {attacks}, at budget {budget}."
    if not_run:
        text += f" Not run: {', '.join(not_run)}."
    return Verdict(NOT_RECOVERED, "Not recovered beyond retrained models.", text)


def advice(no_reference: str) -> str:
    """What to give where no reference can be trained; "" where none was wanted."""
    if no_reference in ("", UNWANTED):
        return ""
    return (
        f" To compare, train {ENOUGH} models of this kind on the same data without the forgotten classes and name their "
        "folders: --reference-runs A,B,C."
    )


def percent(e: Estimate) -> str:
    """'49 % [43, 55]'."""
    return f"{100 * e.value:.0f} % {_interval(e, 100)}"


def cloud(references: Sequence[Estimate]) -> str:
    """Mean of the references and their range: '30 % [23, 34]'; '30 % (one model)' of one."""
    values = [100 * r.value for r in references]
    if len(values) == 1:
        return f"{values[0]:.0f} % (one model)"
    return f"{sum(values) / len(values):.0f} % [{min(values):.0f}, {max(values):.0f}]"


def _interval(e: Estimate, factor: float) -> str:
    form = "{:.2f}" if factor == 1 else "{:.0f}"
    return f"[{form.format(factor * e.low)}, {form.format(factor * e.high)}]"


def warnings(
    counts: Mapping[str, int], references: int, shared: Sequence[str] = (), share: float = 1.0
) -> list[str]:  # fmt: skip
    """What limits every figure: classes with few test items, few references, and those that are not clean.

    counts: forgotten class -> test items; shared: flags that name weights from elsewhere in every model; share: of the
        recipe's steps that trained the references.
    """
    few = [f"{name} ({count})" for name, count in counts.items() if count < FEW_ITEMS]
    found = [f"Few test items, so that intervals are wide: {', '.join(few)}."] if few else []
    if 0 < references < ENOUGH:
        found.append(
            f"Models that never saw the classes: {references}, where {ENOUGH} are needed to know their spread; what is called above "
            "them may be chance."
        )
    if share < 1 and references:
        found.append(
            f"The models that never saw the classes were trained for {100 * share:.0f} % of the base model's steps "
            "(--reference-share). They are weaker than it: their figures may be too low, and what is called above them "
            "may be so for this reason."
        )
    if shared and references:
        told = f"The models that never saw the classes begin with weights from elsewhere ({', '.join(shared)})"
        found.append(f"{told}, which may have seen them: their figures are no clean floor.")
    return found


def plain(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The verdicts as plain data."""
    return [verdict.record() for verdict in found]
