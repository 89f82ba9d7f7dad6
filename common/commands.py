"""The verbs that the three domains share: swap, pretrain, evaluate, prove, predict, check, export."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import adapters, cli, devices, distributed, knobs, launch, lora, notes, precision
from common.config import Parser, add_flags, from_values, help_formatter
from common.domain import Evaluation
from common.errors import UserError
from common.files import find_files, unused_name
from common.frozen import FrozenConfig
from common.knobs import knob
from common.onnx_file import ENDING, TOLERANCE
from common.record import write_bytes
from common.report.curves import draw_curves
from common.session import Answer, Problem, Session
from common.trainer import train


@dataclass
class ComputeConfig:
    """Computing."""

    device: str = knob("auto", "auto, cpu, cuda or cuda:N")
    precision: str = knob(
        "run",
        "number format; run: what the run used, or auto for a bare checkpoint",
        ["run", "auto", *precision.PRECISIONS],
    )

    def region(self, record: Mapping[str, Any], device: torch.device) -> Any:
        """The autocast region for a run with this config.json."""
        recorded = record.get("precision", "auto") if self.precision == "run" else self.precision
        return precision.autocast(precision.choose(recorded, device), device)


@dataclass
class ScoreConfig(ComputeConfig):
    """Scores."""

    classes: str = knob("", "score these classes as one group: a,b,c or @file")
    per_class: bool = knob(True, "also a line per class")
    curves: str = knob("", "write the curves of every class to this .svg (detection)")
    json: bool = knob(False, "print JSON instead of a table")

    def __post_init__(self) -> None:
        if self.curves and not self.curves.endswith(".svg"):
            raise UserError(f"`--curves {self.curves}`: the file must end in .svg.")


@dataclass
class AnswerConfig(ComputeConfig):
    """Answers."""

    output_dir: str = knob("", "also write images with the answers into this folder")
    skip_corrupt: bool = knob(False, "leave unreadable images out instead of stopping")
    json: bool = knob(False, "print JSON instead of a table")


def main(session: Session, verb: str, argv: Sequence[str] | None = None) -> int:
    """Runs one verb; the exit code."""
    return cli.main(lambda words: VERBS[verb](session, session.tidy(words)), argv)


def console(session: Session, argv: Sequence[str] | None = None) -> int:
    """`ks-classification VERB flags...`; the exit code."""

    def body(words: list[str]) -> int | None:
        if not words or words[0] in ("-h", "--help"):
            print(f"usage: ks-{session.name} VERB [flags]; `ks-{session.name} VERB --help` explains a verb\n")
            print(*(f"  {verb:<10}{session.summaries[verb]}" for verb in VERBS), sep="\n")
            return 0
        if words[0] not in VERBS:
            raise UserError(f"unknown verb {words[0]!r}; there are: {', '.join(VERBS)}.")
        return VERBS[words[0]](session, session.tidy(words[1:]))

    return cli.main(body, argv)


# ---- evaluate ------------------------------------------------------------------------------------------------


def evaluate(session: Session, argv: list[str]) -> None:
    """Scores a run on its groups again, or a checkpoint on data."""
    parser = _parser(session, "evaluate", ("run", "folder of a finished run, or a checkpoint (then give --data)"))
    given = _given(
        session, parser, (ScoreConfig,), (session.source, session.view, FrozenConfig, launch.LaunchConfig), argv
    )
    config = from_values(ScoreConfig, given)
    if launch.relaunched(from_values(launch.LaunchConfig, given)):
        return
    device = devices.choose_device(config.device, distributed.local_rank())
    distributed.init(device)
    loaded = session.load(given.pop("run"), given)
    region = config.region(loaded.record, device)
    domain, groups = session.scoring(loaded)
    if config.curves and not any(domain.curve_axes):
        raise UserError(f"`--curves`: {session.name} has no curves; leave it out.")
    notes.tell(distributed.is_main())
    model = loaded.base.model.to(device).eval()
    torch.set_num_threads(loaded.record.get("threads") or torch.get_num_threads())  # sums in another order differ
    with torch.inference_mode(), lora.merged(model), region:
        found = domain.evaluate_groups(model, groups)
    if distributed.is_main():
        if config.curves:
            draw_curves(found, Path(config.curves), domain.curve_axes)
        scores = _as_json(domain.metric, found) if config.json else _as_table(domain, found, config.per_class)
        print(scores)
    distributed.close()


def _as_json(metric: str, found: Mapping[str, Evaluation]) -> str:
    def plain(values: Mapping[str, float]) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    figures = {g: {name: plain(v) for name, v in e.figures.items()} for g, e in found.items() if e.figures}
    scores = {group: plain(evaluation.scores) for group, evaluation in found.items()}
    return json.dumps({"metric": metric, "scores": scores, **({"figures": figures} if figures else {})}, indent=1)


def _as_table(domain: Any, found: Mapping[str, Evaluation], per_class: bool) -> str:
    names = list(next(iter(found.values())).figures)
    lines = [f"{domain.metric_label:<28}{'':>8}" + "".join(f"{name:>8}" for name in names)]
    for group, evaluation in found.items():
        for name, value in evaluation.scores.items():
            if name != "total" and not per_class:
                continue
            more = [evaluation.figures[figure].get(name, math.nan) for figure in names]
            title = group if name == "total" else f"  {name}"
            cells = "".join("       –" if math.isnan(v) else f"{v:8.1f}" for v in (value, *more))
            lines.append(f"{title:<28}{cells}")
    return "\n".join(line.rstrip() for line in lines)


# ---- prove ---------------------------------------------------------------------------------------------------


def prove(session: Session, argv: list[str]) -> None:
    """Attacks what a finished run says it forgot; writes proof.json and proof.html into its folder."""
    from common.evaluation import prove_config

    parser = _parser(session, "prove", ("run", "folder of a finished run"))
    given = _given(session, parser, (prove_config.ProveConfig,), (session.source, session.view), argv)
    folder, config = Path(given.pop("run")), from_values(prove_config.ProveConfig, given)
    flags = {name: value for name, value in given.items() if name not in vars(config)}
    prove_config.begin(session, config, folder)
    from common.evaluation import prove as proof  # scikit-learn takes a second

    print(proof.summary(proof.prove(session, folder, config, flags)))
    print(f"page in {folder / 'proof.html'}")


# ---- predict -------------------------------------------------------------------------------------------------


def predict(session: Session, argv: list[str]) -> None:
    """Answers for image files."""
    places = ("images", "image files or folders of them")
    parser = _parser(session, "predict", ("model", "folder of a finished run, or a checkpoint"), places)
    given = _given(session, parser, (AnswerConfig, *session.predict_flags), (session.source, session.view), argv)
    config = from_values(AnswerConfig, given)
    files = find_files(given.pop("images"), session.suffixes, f"images ({', '.join(session.suffixes)})")
    device = devices.choose_device(config.device, distributed.local_rank())
    loaded = session.load(given.pop("model"), given)
    model = loaded.base.model.to(device).eval()
    answers: list[dict[str, Any]] = []
    written: set[Path] = set()
    with torch.inference_mode(), lora.merged(model), config.region(loaded.record, device):
        for answer in session.predict(loaded, files, device):
            _write_pictures(answer, config.output_dir, written)
            answers.append({"file": answer.file, **answer.data})
            if not config.json:
                print(f"{answer.file}  {answer.text}", flush=True)
    if config.json:
        print(json.dumps(answers, indent=1))


def _write_pictures(answer: Answer, folder: str, written: set[Path]) -> None:
    """Writes an answer's images under the name of its file; files of one name get a number."""
    if folder:
        for ending, data in answer.images.items():
            write_bytes(unused_name(Path(folder) / f"{Path(answer.file).stem}.{ending}", written), data)


# ---- check and export ----------------------------------------------------------------------------------------


def check(session: Session, argv: list[str]) -> int:
    """Lists what is wrong with data; exit code 2 if something would stop a run."""
    parser = _parser(session, "check", ("data", "what --data of swap takes; several are checked one by one"))
    parser.add_argument("--limit", type=int, default=20, help="problems shown of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text, all problems in it")
    parser.add_argument("--fix", metavar="OUT", help="also write a cleaned copy of the data into this new folder")
    args = parser.parse_args(argv)
    knobs.check("`--limit`", args.limit, {"least": 0})
    if args.fix and len(args.data) > 1:
        raise UserError("--fix takes one data set; join several with commas.")
    found = [(text, *session.check(text)) for text in args.data]
    notes.tell(True)
    problems = [problem for _, _, own in found for problem in own]
    fatal = sum(problem.fatal for problem in problems)
    if args.json:
        sets = [{"data": text, "about": lines, "problems": [p._asdict() for p in own]} for text, lines, own in found]
        print(json.dumps({"sets": sets, "errors": fatal, "notes": len(problems) - fatal}, indent=1, ensure_ascii=False))
    else:
        for _, lines, _ in found:
            print(*lines, sep="\n")
        _tell(problems, args.limit)
        print(f"{fatal} errors, {len(problems) - fatal} notes" if problems else "no problem found")
    if args.fix:
        print(*session.fix(args.data[0], args.fix), sep="\n", file=sys.stderr if args.json else sys.stdout)
        return 0
    return 2 if fatal else 0


def _tell(problems: Sequence[Problem], limit: int) -> None:
    """The problems, `limit` of each kind."""
    for kind in dict.fromkeys(problem.kind for problem in problems):
        of_kind = [problem for problem in problems if problem.kind == kind]
        word = "error" if any(problem.fatal for problem in of_kind) else "note"
        print(f"{word}: {kind} ({len(of_kind)})")
        print(*(f"  {p.where}: {p.text}" for p in of_kind[:limit]), sep="\n")
        if len(of_kind) > limit:
            print(f"  ... and {len(of_kind) - limit} more")


def export(session: Session, argv: list[str]) -> None:
    """Writes the model of a run, adapters merged, in a format that others read."""
    parser = _parser(session, "export", ("run", "folder of a finished run, or a checkpoint"))
    parser.add_argument("output", help="file or folder to write")
    default = f"onnx where the file ends in .onnx, else {session.formats[0]}, or a folder of a model of transformers"
    parser.add_argument(
        "--to", "--format", choices=[*session.formats, "onnx"], help=f"what to write (default: {default})"
    )
    text = "leave the forgotten classes' head rows out for good, and check the written file"
    parser.add_argument("--permanent", action="store_true", help=text)
    given = _given(session, parser, (), (session.source,), argv)
    path, kind, permanent = Path(given.pop("output")), given.pop("to"), given.pop("permanent")
    loaded = session.load(given.pop("run"), given)
    kind = kind or ("onnx" if path.suffix == ENDING else session.own_format(loaded))
    if not permanent:
        if kind == "onnx":
            checked = f"checked in ONNX Runtime: answers as the model does with --precision fp32, to {TOLERANCE:g}"
            print(f"wrote {session.export_onnx(loaded, path)}; {checked}")
        else:
            print(f"wrote {session.export(loaded, path, kind)}")
        return
    from common.evaluation import permanent as removal  # with --permanent alone

    before = loaded.base._replace(model=adapters.merge(loaded.base.model), classes=list(loaded.base.classes))
    changed, how = removal.without(session, loaded)
    written = session.export(changed, path, removal.FORMAT if removal.FORMAT in session.formats else kind)
    found = removal.verify(session, written, changed, how, before)
    print(removal.table(found))
    print(
        f"wrote {written}, {how}; an adapter beside its base is reversible, this file has none (`prove` tells what is left)"
    )


def _parser(session: Session, verb: str, *places: tuple[str, str]) -> Parser:
    """A parser with positional arguments; those named in the plural take several values."""
    text = f"{session.summaries[verb]}\n\nExample:\n  {session.examples[verb]}"
    parser = Parser(
        prog=f"ks-{session.name} {verb}", description=text, formatter_class=help_formatter, allow_abbrev=False
    )
    for name, explanation in places:
        parser.add_argument(name, help=explanation, nargs="+" if name in ("images", "data") else None)
    return parser


def _given(
    session: Session, parser: Parser, own: Sequence[type], others: Sequence[type], argv: Sequence[str]
) -> dict[str, Any]:
    """Flags by name: those of `own` with their defaults, those of `others` only where given.

    --help shows the former and where data and model are.
    """
    session.extend(parser, argv)
    shown = [action.dest for action in parser._actions]
    for kind in own:
        add_flags(parser, kind)
    shown += [action.dest for action in parser._actions if action.dest not in shown]
    for kind in others:
        add_flags(parser, kind, given_only=True)
    parser.show_first((*shown, "data", "checkpoint", *session.everyday))
    given = vars(parser.parse_args(list(argv)))
    for kind in (*own, *others):
        from_values(kind, given)  # its checks, before a model is read
    return given


VERBS: dict[str, Callable[[Session, list[str]], int | None]] = {
    "swap": partial(train, verb="swap"), "pretrain": partial(train, verb="pretrain"), "evaluate": evaluate, "prove": prove, "predict": predict, "check": check,
    "export": export,
}  # fmt: skip
