"""`hf:FOLDER` and `hf:NAME`: models of the transformers library, from a local folder or by their name on its hub.

Everything is read from a folder: a name is resolved to the folder of its snapshot first. No code of a repository is
run, and no weights are read but safetensors and pickles of plain tensors.
"""

from __future__ import annotations

import builtins
import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from common.bounded import Bounded
from common.errors import UserError, first_line
from common.files import user_path
from common.hub_form import Index, Processor, check_config, without_forms
from common.names import check_names
from common.record import write_bytes
from common.schema import read_json, typed

PREFIX = "hf:"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What lies beside a model and is carried to its export: how pictures and words are prepared.
BESIDE = ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
          "merges.txt", "special_tokens_map.json", "spiece.model")  # fmt: skip
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
OWN_TIMM = ("deformable_detr",)  # for which transformers knows what a timm backbone that is only named gives out
WHOLE = ("BOOL", "U8", "I8", "I16", "I32", "I64")  # safetensors' names of types that are no fractions


def is_hub(text: str) -> bool:
    """Whether a flag's value names a transformers model."""
    return text.startswith(PREFIX)


def is_folder(path: str | Path) -> bool:
    """Whether a folder holds a transformers model: a config.json that states its type."""
    return bool(model_type(path))


def model_type(folder: str | Path) -> str:
    """The type that a folder's config.json states; "" where it holds no transformers model."""
    file = user_path(folder) / CONFIG
    try:
        return _kind(_content(file)) if file.is_file() else ""
    except UserError:  # damaged, of whatever kind it was
        return ""


def _kind(table: Mapping[str, Any]) -> str:
    """The model type that a config states; timm's own configs state none. "" where it is no model's."""
    timm = isinstance(table.get("architecture"), str) and "pretrained_cfg" in table
    kind = table.get("model_type", "timm_wrapper" if timm else "")
    return kind if isinstance(kind, str) else ""


def _content(file: Path) -> Mapping[str, Any]:
    found = read_json(file, Any, "name a folder that `save_pretrained` wrote")
    return found if isinstance(found, dict) else {}


def folder_of(text: str, fetch: bool = True) -> Path:
    """The folder of `hf:FOLDER` or `hf:NAME`.

    Args:
        fetch: whether a name may be downloaded; else it must be in the hub's cache already.

    Raises:
        UserError: no such folder or name, or it is no transformers model.
    """
    place = text.removeprefix(PREFIX)
    folder = user_path(place)
    if not place or not folder.is_dir():
        if not NAME.fullmatch(place) or place.startswith("."):
            raise UserError(f"`{text}`: there is no folder {place}; give hf:FOLDER, or hf:NAME as on the hub.")
        folder = _snapshot(place, fetch)
    if not is_folder(folder):
        raise UserError(f"{folder} holds no transformers model ({CONFIG} with a model_type is missing).")
    return folder


def _snapshot(name: str, fetch: bool) -> Path:
    """The cached files of a repository, downloaded where that is allowed."""
    from huggingface_hub import snapshot_download  # not needed for folders

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not fetch))
        if fetch and not any((folder / file).exists() for file in WEIGHTS[:2]):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*.bin"]))
        return folder
    except Exception as error:  # the library raises many kinds
        why = first_line(error)[:160] if fetch else "a run's record is not reason enough to download"
        hint = "give a folder" if fetch else f"give --model {PREFIX}{name} again to allow it"
        raise UserError(f"`{PREFIX}{name}` is no local folder and not in the hub's cache: {why}; {hint}.") from None


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights, not a config alone."""
    return any((folder / name).is_file() for name in WEIGHTS)


def read_config(folder: Path) -> Any:
    """The transformers config of a folder. Raises UserError for an unknown type, or one that would fetch something."""
    return make_config(_content(folder / CONFIG), str(folder))


def make_config(table: Mapping[str, Any], where: str) -> Any:
    """The transformers config of a table as config.json holds it; see `read_config`."""
    from transformers import CONFIG_MAPPING  # takes seconds to import

    kind = _kind(table)
    if kind not in CONFIG_MAPPING:
        raise UserError(f"{where}: model_type {kind!r} is unknown to the installed transformers.")
    check_config(table, where)
    table = _stated_backbone(table, where)
    with one_line(f"{where}: its {CONFIG} cannot be used"):
        return CONFIG_MAPPING[kind].from_dict(without_forms(table))


def _stated_backbone(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The config with its backbone in the words of transformers 5, which looks older ones up on the hub."""
    name, others = table.get("backbone"), table.get("backbone_kwargs") or {}
    if name is None or table.get("backbone_config") is not None:
        return table
    if not table.get("use_timm_backbone", True):
        raise UserError(f"{where}: backbone {name!r} would be downloaded; only built-in ones are read.")
    stated = {"model_type": "timm_backbone", "backbone": name, "use_pretrained_backbone": False, **others}
    kept = {n: v for n, v in table.items() if n not in ("backbone", "backbone_kwargs", "use_timm_backbone")}
    return kept | {"backbone_config": stated} if others or _kind(table) not in OWN_TIMM else table


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Makes one line of what goes wrong within the library, and keeps its own remarks quiet."""
    from transformers.utils import logging as remarks

    level, bars = remarks.get_verbosity(), remarks.is_progress_bar_enabled()
    remarks.set_verbosity_error()
    remarks.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {first_line(error)[:200]}.") from None
    finally:
        remarks.set_verbosity(level)
        if bars:
            remarks.enable_progress_bar()


def build(kind: str, config: Any) -> nn.Module:
    """A model of a transformers class by name, at random, in eval mode."""
    import transformers

    with one_line(f"a {kind} of this {CONFIG} cannot be built"), Bounded(f"this {CONFIG}"):
        return getattr(transformers, kind)(config).eval()


def load(kind: str, folder: Path, config: Any, spare: Sequence[str] = ()) -> nn.Module:
    """The model of a folder, of a transformers class by name, in float32 and in eval mode.

    Args:
        spare: beginnings of the names of parameters that may be missing and then start at random.

    Raises:
        UserError: no weights, damaged, or some of them missing or of another shape.
    """
    import transformers

    if not has_weights(folder):
        raise UserError(f"{folder} holds a config but no weights ({' or '.join(WEIGHTS[::2])}).")
    files = _weight_files(folder)
    with one_line(f"{folder} cannot be read as a {kind}"):
        model, found = getattr(transformers, kind).from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True, dtype="float32",
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    wrong = [str(entry) for entry in found["mismatched_keys"]]
    wrong += [str(key) for key in found["missing_keys"] if not str(key).startswith(tuple(spare))]
    if wrong:
        raise UserError(f"{folder} lacks {len(wrong)} tensors of a {kind}, or has them in another shape: {wrong[0]}.")
    if whole := _whole_numbers(files, {name for name, _ in model.named_parameters()}):
        raise UserError(f"{folder} holds {whole} as whole numbers; name a folder of weights that are not quantised.")
    if bad := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise UserError(f"{folder} is damaged: {bad[0]} holds values that are no numbers.")
    return model.eval()


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights of a folder. Raises UserError for an index that names others than files in it."""
    first = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    if first.suffix != ".json":
        return [first]
    index: Index = read_json(first, Index, "name a folder that `save_pretrained` wrote")
    files = [folder / name for name in dict.fromkeys(index.weight_map.values())]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise UserError(f"{first} names {file.name!r}, which is no file beside it; the folder is not whole.")
    return files


def _whole_numbers(files: Sequence[Path], parameters: Set[str]) -> str:
    """The name of a parameter that a .safetensors file holds as whole numbers; "" where there is none."""
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                for name in parameters & set(opened.keys()):
                    if opened.get_slice(name).get_dtype() in WHOLE:
                        return name
    return ""


def beside(folder: Path) -> dict[str, bytes]:
    """File name -> content of what `BESIDE` names in a folder."""
    return {name: (folder / name).read_bytes() for name in BESIDE if (folder / name).is_file()}


def processor(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The settings of the image processor among the files beside a model; {} where there is none.

    Raises:
        UserError: no JSON, or values that no processor has.
    """
    advice = "mend it or take it away"
    try:
        found = json.loads(files.get(BESIDE[0]) or b"{}")
        found = found or json.loads(files.get(BESIDE[1]) or b"{}").get("image_processor") or {}
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{BESIDE[0]} of the model is no JSON table; {advice}.") from None
    typed(found, Processor, f"{BESIDE[0]} of the model", advice)
    return found


def statistics(settings: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    """(mean, deviation) of pixels in 0..1, per channel, that a processor takes off; None where it states none."""
    if not (settings.get("image_mean") and settings.get("image_std") and settings.get("do_normalize", True)):
        return None
    scale = (settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 1.0
    factor = 1 / (255 * scale)  # from what the model reads to 0..1
    mean, deviation = ([float(value) * factor for value in settings[name]] for name in ("image_mean", "image_std"))
    return mean, deviation


def side(size: Any) -> int:
    """The shorter side in pixels of {"shortest_edge"}, {"height", "width"} or a number; 0 where it states none."""
    if isinstance(size, Mapping):
        stated = [size.get(name) for name in ("shortest_edge", "height", "width")]
        size = min((value for value in stated if isinstance(value, int)), default=0)
    elif isinstance(size, list | tuple):
        size = min((value for value in size if isinstance(value, int)), default=0)
    return size if isinstance(size, int) and size > 0 else 0


def row_names(config: Any) -> list[str]:
    """Names of the class rows of a config's `id2label`; [] where they are only numbered. Raises UserError for odd ones."""
    stated = [config.id2label[i] for i in range(len(config.id2label)) if i in config.id2label]
    if odd := [name for name in stated if not isinstance(name, str | int)]:
        raise UserError(f"{CONFIG} calls a class {str(odd[0])[:40]}, which is no name; mend its id2label.")
    names = [str(name) for name in stated]
    check_names("class", names)
    numbered = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return [] if numbered or len(names) != len(config.id2label) else names


def save(model: Any, folder: Path, names: Sequence[str], files: Mapping[str, bytes]) -> None:
    """Writes a transformers model as a folder that `from_pretrained` reads.

    Args:
        names: of its class rows.
        files: name -> content of what lies beside it.

    Raises:
        UserError: the name is that of a file of weights.
    """
    if folder.suffix in (".pth", ".pt", ".pkl", ".bin", ".safetensors", ".onnx"):
        raise UserError(
            f"a model of transformers is written as a folder; give {folder.with_suffix('')}, not {folder.name}."
        )
    config = model.config
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    if hasattr(config, "label_names"):  # of timm
        config.label_names, config.num_classes = list(names), len(names)
    with one_line(f"{folder} cannot be written"):
        model.save_pretrained(folder)
    for name, content in files.items():
        write_bytes(folder / name, content)


def plain_config(config: Any) -> dict[str, Any]:
    """A transformers config as a table for JSON, which `make_config` reads."""
    return json.loads(config.to_json_string(use_diff=False))


@contextmanager
def open_batch(network: nn.Module) -> Iterator[None]:
    """Inside, a traced graph of the network takes any number of images.

    Its source file calls `len` of a tensor, which fixes the number, and checks values, which has no form in ONNX.
    """
    own: dict[str, Any] = vars(sys.modules[type(network).__module__])
    before: dict[str, Any] = {name: own[name] for name in ("len", "torch_compilable_check") if name in own}

    def length(thing: Any) -> Any:
        return thing.shape[0] if isinstance(thing, Tensor) else builtins.len(thing)

    own.update(len=length, torch_compilable_check=lambda *checked, **others: None)
    try:
        yield
    finally:
        del own["len"], own["torch_compilable_check"]
        own.update(before)
