"""Models as ONNX files: written, checked against the model in ONNX Runtime, read back."""

from __future__ import annotations

import io
import json
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from common.claim import PART
from common.errors import UserError, first_line
from common.schema import typed

ENDING = ".onnx"
OPSET = 18
AGAIN = "write it again with `export --to onnx`"
TOLERANCE = 1e-4
INPUT = "pixel_values"
LARGEST = 2_000_000_000  # bytes of weights that one file of protocol buffers holds
Outputs = Sequence[Tensor]
T = TypeVar("T")


def largest_difference(own: Outputs, others: Outputs) -> float:
    """Of all values of all outputs."""
    return max(float((a - b).abs().max()) for a, b in zip(own, others, strict=True))


class Answers(nn.Module):
    """What of a model becomes a graph: `answers(model, images)`, a tuple of tensors."""

    def __init__(self, model: nn.Module, answers: Callable[[Any, Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model, self.answers = model, answers

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.answers(self.model, images)


@dataclass
class Graph:
    """What a domain hands over to be written.

    module:     images [N, 3, H, W], normalised -> a tuple of tensors.
    outputs:    their names.
    images:     batches of images. The first is traced; on each the file must answer like the module.
    open_sizes: whether H and W may be others than those of the first; N always may.
    difference: of the module's outputs and the file's; above 1e-4 the file is not kept.
    operators:  `custom_translation_table` of torch.onnx.export.
    settings:   what the domain needs to read the file, as JSON.
    """

    module: nn.Module
    outputs: Sequence[str]
    images: Sequence[Tensor]
    open_sizes: bool
    settings: Mapping[str, Any]
    difference: Callable[[Outputs, Outputs], float] = largest_difference
    operators: Mapping[Any, Any] = field(default_factory=dict)


def batches(fixed: tuple[int, int] | None, sizes: Sequence[tuple[int, ...]] = ()) -> list[Tensor]:
    """Random batches for `Graph.images`: of `sizes` (N, 3, H, W), or three of the one size (H, W) that is fixed."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, 3, *fixed) for n in (2, 1, 3)] if fixed else sizes
    return [torch.randn(shape, generator=generator) for shape in shapes]


class Notes(msgspec.Struct):
    """The metadata of a file."""

    classes: Annotated[list[str], msgspec.Meta(min_length=1)]
    groups: dict[str, list[str]]
    flags: dict[str, Any]
    settings: dict[str, Any]


class OnnxFile:
    """A file that `write` made, in ONNX Runtime.

    settings: what the domain wrote; classes: names of the logit rows; groups: those of the run, by name; flags: how the
    run read its images.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises UserError: no such file, no ONNX, or not of this package; or onnxruntime is missing."""
        _need("reading an .onnx file", "onnxruntime")
        import onnxruntime  # an optional package

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class but this
            raise UserError(f"{path} cannot be read by ONNX Runtime: {first_line(error)}.") from None
        notes = self._session.get_modelmeta().custom_metadata_map
        try:
            self.task, self.path = str(notes["task"]), path
            found = {key: json.loads(notes[key]) for key in ("classes", "groups", "flags", "settings")}
        except (KeyError, ValueError, RecursionError):
            raise UserError(
                f"{path} holds no classes: it was not written by `export --to onnx` of this package."
            ) from None
        told = typed(found, Notes, f"metadata of {path}", AGAIN)
        self.classes, self.groups, self.flags, self.settings = told.classes, told.groups, told.flags, told.settings

    def told(self, kind: type[T]) -> T:
        """The settings as `kind`. Raises UserError where they are of another form."""
        return typed(self.settings, kind, f"metadata of {self.path}", AGAIN)

    def __call__(self, images: Tensor, *forms: tuple[int, ...]) -> list[Tensor]:
        """The outputs for images [N, 3, H, W], on the CPU.

        Args:
            forms: of each output the sizes behind N; 0 is any. Without them outputs are as they come.

        Raises:
            UserError: the graph is of another form, or an output holds values that are no numbers.
        """
        try:
            values = self._session.run(None, {INPUT: images.detach().cpu().float().numpy()})
        except Exception as error:  # onnxruntime's errors have no common class but this
            raise UserError(f"{self.path} cannot be run: {str(error).splitlines()[0]}; {AGAIN}.") from None
        found = [torch.from_numpy(value) for value in values]
        if forms:
            pairs = zip(found, forms, strict=False)
            if len(found) != len(forms) or not all(_fits(value, (len(images), *form)) for value, form in pairs):
                raise UserError(
                    f"{self.path} does not give the outputs of a model for its {len(self.classes)} classes; {AGAIN}."
                )
        return found

    @staticmethod
    def placeholder() -> nn.Parameter:
        """An empty parameter, by which a module around the file says that it is on the CPU."""
        return nn.Parameter(torch.zeros(0), requires_grad=False)


def _fits(value: Tensor, form: tuple[int, ...]) -> bool:
    """Whether a tensor has this shape (0 is any size) and holds numbers."""
    same = value.ndim == len(form) and all(want in (0, own) for own, want in zip(value.shape, form, strict=True))
    return same and value.is_floating_point() and bool(value.isfinite().all())


def write(graph: Graph, path: Path, notes: Mapping[str, Any]) -> None:
    """Writes the file, or nothing if it does not answer like the module.

    Args:
        notes: metadata beside the graph's settings, written as JSON (strings as they are).

    Raises:
        UserError: a package is missing, another ending, weights that are too large, or other answers.
    """
    _need("`--to onnx`", "onnx", "onnxscript", "onnxruntime")
    if path.suffix != ENDING:
        raise UserError(f"an ONNX export ends in {ENDING}, got {path.name}.")
    size = sum(p.numel() * p.element_size() for p in graph.module.parameters())
    if size > LARGEST:
        raise UserError(f"{size / 1e9:.1f} GB of weights do not fit into one ONNX file (2 GB at most).")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        for optimised in (True, False):  # the exporter's optimisation breaks some graphs
            try:
                with torch.no_grad():
                    _save(graph, part, {**notes, "settings": graph.settings}, optimised)
                    worst = max(_difference(graph, OnnxFile(part), images) for images in graph.images)
            except UserError as error:
                if not optimised:
                    reason = str(error).replace(str(part), "its graph").removesuffix(f"; {AGAIN}.")
                    raise UserError(f"{path} was not written: {reason}") from None
                continue
            if worst <= TOLERANCE:
                break
        else:
            raise UserError(
                f"{path} was not written: in ONNX Runtime it answers otherwise than the model (difference {worst:.1e}, "
                f"allowed {TOLERANCE:g})."
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _difference(graph: Graph, file: OnnxFile, images: Tensor) -> float:
    return graph.difference([t.float() for t in graph.module(images)], file(images))


def _save(graph: Graph, path: Path, notes: Mapping[str, Any], optimised: bool) -> None:
    traced, open_size = graph.images[0], torch.export.Dim.AUTO
    sizes = {0: open_size, **({2: open_size, 3: open_size} if graph.open_sizes else {})}
    try:
        with _quiet(), _symbolic_linspace():
            exported = torch.export.export(graph.module.eval(), (traced,), dynamic_shapes=(sizes,), strict=False)
            program = torch.onnx.export(
                exported, (), opset_version=OPSET, input_names=[INPUT], output_names=list(graph.outputs), verbose=False,
                custom_translation_table=dict(graph.operators), optimize=optimised,
            )  # fmt: skip
    except Exception as error:  # tracing and translation have no common class
        last = str(error.__cause__ or error).strip().splitlines()[0][:200]
        raise UserError(f"the model has no form in ONNX that torch {torch.__version__} can write: {last}") from None
    assert program is not None  # it is where the exporter works on what `torch.export` made
    for key, value in notes.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    program.save(str(path), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on graphs that it leaves as they are, on its own old names, and on what it cannot trace."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _symbolic_linspace() -> Iterator[None]:
    """torch.linspace fixes an open size to the traced one; here it is made of `arange`, which keeps it open."""
    plain = torch.linspace

    def linspace(start: Any, end: Any, steps: Any, **options: Any) -> Tensor:
        if isinstance(steps, torch.SymInt):
            return start + torch.arange(steps, **options) * ((end - start) / torch.sym_max(steps - 1, 1))
        return plain(start, end, steps, **options)

    torch.linspace = linspace  # type: ignore[assignment]  # torch's is overloaded
    try:
        yield
    finally:
        torch.linspace = plain


def _need(what: str, *packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}; run: pip install 'knowledge-swapping[deploy]'.")
