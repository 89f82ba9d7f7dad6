"""Permanent removal: merged weights without the forgotten classes' head rows, and a check of the written file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import adapters
from common.domain import Domain
from common.errors import UserError
from common.evaluation.attacks.weights import rounded_variants
from common.evaluation.manifest import weight_files
from common.record import write_json
from common.session import Base, Loaded, Session

SILENT = -1e4  # logit of a class whose row must stay: no softmax and no sigmoid in any number format names it
FORMAT = "folder"  # preferred, for it keeps class names
RECORD = "permanent.json"


def without(session: Session, loaded: Loaded) -> tuple[Loaded, str]:
    """(the run's model, adapters merged and forgotten rows removed; how they were removed).

    Raises:
        UserError: no run, or one that forgets nothing.
    """
    forgotten = loaded.forgotten
    if not forgotten:
        raise UserError("--permanent is for a run that forgets classes; this one forgets none.")
    merged = loaded.base._replace(model=adapters.merge(loaded.base.model).eval())
    base = session.without(merged, forgotten)
    if base is not None:
        groups = {g: classes for g, classes in loaded.groups.items() if not set(classes) & set(forgotten)}
        return replace(loaded, base=base, groups=groups), "rows removed"
    silence(session, replace(loaded, base=merged), forgotten)
    return replace(loaded, base=merged), f"rows kept for the layout: weights 0, bias {SILENT:g}"


@torch.no_grad()
def silence(session: Session, loaded: Loaded, classes: Sequence[str]) -> None:
    """Overwrites the rows of `classes` in place: matrices with 0, vectors (biases) with `SILENT`."""
    domain, _ = session.scoring(loaded)
    parameters = dict(loaded.base.model.named_parameters(remove_duplicate=False))
    for name, rows in domain.head_rows(loaded.base.model, classes).items():
        parameters[name][rows] = SILENT if parameters[name].dim() == 1 else 0.0


def verify(session: Session, written: Path, loaded: Loaded, how: str, original: Base) -> dict[str, Any]:
    """Loads the written file again, scores it as it is and with rounded weights, and looks for what must not be in it.

    Args:
        loaded: what was written, for its groups and flags; original: the merged model with its rows.

    Returns:
        {"sha256", "how", "scores": {"as written" or rounding: {group: score}}, "original_rows"}; also written beside
        the file. Higher scores of forgotten groups under a rounding would mean that the knowledge is still there.

    Raises:
        UserError: an adapter, or a row of the original, is still in the file.
    """
    flags = {**loaded.flags, "classes": "", "narrow_head": False}
    again = session.load(written, flags | ({"class_names": "", "model": ""} if written.is_dir() else {}))
    left = [name for name in again.base.model.state_dict() if ".lora_" in name]
    if left:
        raise UserError(f"{written} still holds an adapter ({left[0]}).")
    domain, groups = session.scoring(replace(again, groups=loaded.groups))
    gone = loaded.forgotten
    if same := _original_rows(domain, again.base.model, original, gone):
        raise UserError(f"{written} still holds the original's row of class {same!r}.")
    scores = {}
    variants = {"as written": again.base.model, **dict(rounded_variants(again.base.model))}
    with torch.inference_mode():
        for title, model in variants.items():
            found = domain.evaluate_groups(copy.deepcopy(model).eval(), groups)
            scores[title] = {group: evaluation.scores["total"] for group, evaluation in found.items()}
    record = {"run": str(loaded.record["flags"].get("output_dir", "")), "forgotten": gone, "how": how,
              "metric": domain.metric, "scores": scores, "sha256": weight_files(written)}  # fmt: skip
    write_json(written / RECORD if written.is_dir() else written.with_suffix(f".{RECORD}"), record)
    return record


def _original_rows(domain: Domain, model: nn.Module, original: Base, gone: Sequence[str]) -> str:
    """A forgotten class of which a row of the original's classifier stands anywhere in the new one's; "" where none."""
    own, names = dict(model.named_parameters(remove_duplicate=False)), domain.classes.names
    before = dict(original.model.named_parameters(remove_duplicate=False))
    for name in domain.head_rows(model, names[:1]):
        for c in (c for c in gone if c in original.classes):
            row = before[name][original.classes.index(c)]
            if row.dim() and bool((own[name] == row).flatten(1).all(1).any()):
                return c
    return ""


def table(found: Mapping[str, Any]) -> str:
    """The scores of the written file as text."""
    groups = list(next(iter(found["scores"].values())))
    lines = [f"{found['metric']:<14}" + "".join(f"{group:>12}" for group in groups)]
    for title, scores in found["scores"].items():
        lines.append(f"{title:<14}" + "".join(f"{scores[group]:12.1f}" for group in groups))
    return "\n".join(lines)
