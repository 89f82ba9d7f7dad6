"""The models of a proof: the original, the result, and references that never saw the forgotten classes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import adapters
from common.config import flag
from common.domain import Domain
from common.errors import UserError
from common.evaluation.figures import ORIGINAL, REFERENCE, RESULT
from common.evaluation.retrained import References, recipe, shortened
from common.plan import from_record, standing
from common.record import read_run_config
from common.session import Session
from common.settings import Settings, settings_from
from common.splits import write_list
from common.streams import seed_all
from common.teacher import share


@dataclass
class Subject:
    """One model under attack.

    domain: its class rows, with training and test items of all classes.
    model:  adapters merged, in eval mode; adapted: the same with its adapter in place, or None where it has none.
    folder: where it lies on disk.
    """

    name: str
    domain: Domain
    model: nn.Module
    adapted: nn.Module | None = None
    folder: Path | None = None


class Case:
    """A finished run and what it was asked to forget.

    Args:
        given: flags that win over the recorded ones.
        model, data: objects of a run that was started from Python with them.

    Raises:
        UserError: no run, it is not finished, or it forgets nothing.
    """

    def __init__(
        self, session: Session, folder: Path, given: Mapping[str, Any], model: nn.Module | None = None, data: Any = None
    ) -> None:  # fmt: skip
        self.session, self.folder, self.given, self.model, self.data = session, folder, dict(given), model, data
        self.record = session.record_of(folder)
        self.flags = session.joined(self.record["flags"], given)
        if not (folder / "done.json").exists():
            raise UserError(f"{folder} is not finished; finish the run with its own command first.")
        plan = from_record(self.record["identity"]["plan"])
        gone = standing(plan.phases, "forget")
        self.forgotten = [c for g in gone for c in plan.groups[g]]
        if not self.forgotten:
            raise UserError(f"{folder} forgets no class, so that there is nothing to attack.")
        self.learned = [c for c in plan.new_classes if c not in self.forgotten]
        untaught = {c for g in plan.missing for c in plan.groups[g]}
        every = [c for classes in plan.groups.values() for c in classes]
        self.retained = [c for c in every if c not in {*self.forgotten, *self.learned, *untaught}]
        self.known = [*self.retained, *self.learned]

    def attack_rate(self) -> float:
        """The learning rate of a relearning attacker: the run's own, and at least what the domain takes for adapters, so
        that a method that trains whole weights at a tenth of it meets no weaker attacker."""
        usual: Any = self.session.defaults_for("swap", ())["lr"]
        return max(float(self.flags["lr"]), float(usual))

    def _settings(self, verb: str, flags: Mapping[str, Any], **given: Any) -> Settings:
        return settings_from(self.session.run_kinds(verb), flags, **given)

    def _domain(self, changes: Mapping[str, Any], **given: Any) -> Domain:
        """The domain of a swap with the run's flags, these changed."""
        flags = self.flags | dict(changes) | ({"allow_chance": True} if "allow_chance" in self.flags else {})
        return self.session.open_swap(self._settings("swap", flags, **given)).domain()

    def _built(self, domain: Domain) -> nn.Module:
        """The base model with rows for new classes, which start as in the run."""
        seed_all(int(self.flags["seed"]))
        return _shared(domain.build_model().eval(), domain.base, domain)

    # ---- original and result -----------------------------------------------------------------------------

    def own(self) -> tuple[Subject, Subject]:
        """The original and the result."""
        given = {name: value for name, value in (("model", self.model), ("data", self.data)) if value is not None}
        domain = self._domain({}, **given)
        original = self._built(domain)
        adapted = copy.deepcopy(original)
        whole = not (self.folder / "adapter" / adapters.SWAP).exists()
        if whole:
            adapters.load_model(adapted, self.folder / "model")
        else:
            adapters.load(adapted, self.folder / "adapter")
        domain.freeze(adapted)
        domain.freeze(original, adapted)
        merged = adapters.merge(adapted).eval()
        for model in (adapted, merged):
            _shared(model, original, domain)
        checkpoint = self.flags.get("checkpoint")
        place = Path(checkpoint) if checkpoint else None
        return (
            Subject(ORIGINAL, domain, original, folder=place),
            Subject(RESULT, domain, merged, None if whole else adapted.eval(), self.folder),
        )

    # ---- references --------------------------------------------------------------------------------------

    def given_references(self, folders: Sequence[Path]) -> list[Path]:
        """Runs named by the user. Raises UserError for one that has seen a forgotten class, or is no base model."""
        for folder in folders:
            if not self.session.is_run(folder):
                raise UserError(f"--reference-runs: {folder} is no run (config.json is missing).")
            plan = read_run_config(folder)["identity"]["plan"]
            seen = [c for classes in plan["groups"].values() for c in classes if c in self.forgotten]
            if seen:
                raise UserError(f"--reference-runs: {folder} has seen class {seen[0]!r}, which {self.folder} forgets.")
        return list(folders)

    def shadow(self, folder: Path) -> Path:
        """A run named by the user. Raises UserError where it does not know a forgotten class, or items are no pictures."""
        if not self.session.is_run(folder):
            raise UserError(f"--shadow-runs: {folder} is no run (config.json is missing).")
        groups = read_run_config(folder)["identity"]["plan"]["groups"].values()
        unknown = [c for c in self.forgotten if not any(c in classes for classes in groups)]
        if unknown:
            raise UserError(f"--shadow-runs: {folder} does not know class {unknown[0]!r}, which {self.folder} forgets.")
        return folder

    def shared(self) -> list[str]:
        """The flags of the base's recipe that name weights from elsewhere: the references begin with them too."""
        found, _ = recipe(self.session, Path(str(self.flags.get("checkpoint") or "?")))
        given = {name for flags in (found.stages if found else ()) for name, value in flags.items() if value}
        return [flag(name) for name in self.session.shared_flags if name in given]

    def references(self, share: float = 1.0) -> tuple[References | None, str]:
        """(the models that the base's recipe gives without the forgotten classes, or None, why there are none).

        share: of the recipe's steps. They see what the result has seen besides: learned classes too, where those lie in the same data.
        """
        if self.model is not None:
            return None, "nothing records how the model that was given from Python was trained"
        if not self.flags.get("checkpoint"):
            return None, f"nothing records how the base model {self.flags.get('model')} was trained"
        base = Path(str(self.flags["checkpoint"]))
        found, reason = recipe(self.session, base)
        if found is None:
            return None, reason
        flags = found.stages[0]
        missing = "" if "data" in self.given else self.session.to_be_fetched(flags)
        if missing:
            raise UserError(
                f"the references are trained on {missing}, as {base} records, which is not here: give --data {missing} to "
                "fetch it, or --references 0."
            )
        same_data = Path(str(self.record["flags"].get("data"))).resolve() == Path(str(flags.get("data"))).resolve()
        same_data = same_data and not any(self.flags.get(name) for name in self.session.data_flags)
        classes = [c for c in found.classes if c not in self.forgotten] + (self.learned if same_data else [])
        stages = [shortened(flags, share) for flags in found.stages]
        return References(self.session, stages, classes, self.forgotten, base, self.folder), ""

    def reference(self, number: int, folder: Path) -> Subject:
        """A reference with rows for the classes that it never saw; those rows are as a swap would start them."""
        seen = [c for classes in read_run_config(folder)["identity"]["plan"]["groups"].values() for c in classes]
        new = [c for c in (*self.forgotten, *self.known) if c not in seen]
        changes = {"checkpoint": str(folder), "learn": write_list(new), "forget": "", "plan": "", "order": "learn",
                   "retain": write_list(c for c in (*self.forgotten, *self.known) if c in seen)}  # fmt: skip
        domain = self._domain(changes)
        model = self._built(domain)
        domain.freeze(model)
        return Subject(f"{REFERENCE}-{number}", domain, model, folder=folder)


def _shared(model: nn.Module, other: nn.Module | None, domain: Domain) -> nn.Module:
    """The model, with weights that `other` has too in one memory with it, but for class rows: attacks work on copies."""
    if other is not None:
        share(model, other, set(domain.head_rows(model, domain.classes.names)))
    return model


def moved_to(subject: Subject, device: torch.device) -> Subject:
    """The subject on a device."""
    for model in (subject.model, subject.adapted):
        if model is not None:
            model.to(device).eval()
    return subject
