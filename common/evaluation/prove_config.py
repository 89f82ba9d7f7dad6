"""The settings of a proof, and what it needs soon; without what takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import devices, jobs
from common.evaluation.budget import BUDGETS
from common.evaluation.retrained import COUNT
from common.knobs import Checked, knob
from common.record import PROOF_MODELS, read_run_config
from common.session import Session

LATE = ("torchvision.transforms.v2", "sklearn.svm", "sklearn.linear_model")  # what attacks and domains import


@dataclass
class ProveConfig(Checked):
    """The proof."""

    references: int = knob(COUNT, "models without the forgotten classes to train and compare with; 0: none", most=1000)
    reference_runs: str = knob("", "run folders of such models, comma separated, instead of training some")
    reference_share: float = knob(
        1.0, "share of the recorded recipe's steps that train them; below 1 they are weaker models", above=0, most=1
    )
    shadow_runs: str = knob("", "base models that know the forgotten classes but not all their pictures, for RMIA")
    jobs: int = knob(
        0, "processes that train references and attack; 0: one more than the CPU has cores, one on a GPU", most=256
    )
    budget: str = knob("quick", "how much the attacker may spend", list(BUDGETS))
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")


def imports(session: Session) -> list[str]:
    """The modules that the processes of a proof need."""
    return ["common.evaluation.prove", type(session).__module__, *LATE]


def begin(session: Session, config: ProveConfig, folder: Path) -> None:
    """Where references will be trained side by side, their processes' imports begin, beside those of this process."""
    alone = config.jobs == 1 or (not config.jobs and devices.choose_device(config.device, 0).type != "cpu")
    if alone or not config.references or config.reference_runs or not session.is_run(folder):
        return
    base = read_run_config(folder)["flags"].get("checkpoint")
    if base and session.is_run(Path(base)) and not (Path(base) / PROOF_MODELS).exists():
        jobs.begin(imports(session))
