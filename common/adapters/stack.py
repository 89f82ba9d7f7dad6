"""Swaps as files: stacked in order, one left out, merged into base weights. No model is built, no base file is touched."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from common import adapters
from common.adapters import PREFIX, SAME
from common.errors import UserError
from common.record import write_bytes, write_json
from common.schema import read_json
from common.weights import read_weights

FILE = "model.safetensors"
EXPORT = "the verb `export` writes merged weights of any base."


@dataclass(frozen=True)
class Swap:
    """The adapter of a run. learned: classes whose head rows it trained."""

    run: Path
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def classes(self) -> list[str]:
        return list(self.info["classes"])

    @property
    def learned(self) -> list[str]:
        return [self.classes[row] for row in sorted({r for rows in self.info["rows"].values() for r in rows})]

    def factors(self, layer: str) -> tuple[Tensor, Tensor]:
        """A [R, in] and B [out, R], the scale in B."""
        a, b = (self.tensors[f"{PREFIX}{layer}.lora_{x}.weight"] for x in "AB")
        return a, b * self.info["layers"][layer]["scale"]


def read(run: str | Path) -> Swap:
    """The adapter of a run folder. Raises UserError where there is none, or one from before bases were recorded."""
    info, tensors = adapters.read(Path(run) / "adapter")
    told = {"base_sha256": "which base it belongs to", "plan": "what it learned", "classes": "the names of its rows"}
    if missing := [key for key in told if not info.get(key)]:
        raise UserError(f"{run} does not say {told[missing[0]]} ({missing[0]}); start its swap again to add it.")
    if max((row for rows in info["rows"].values() for row in rows), default=0) >= len(info["classes"]):
        raise UserError(f"{run}: {adapters.SWAP} names fewer classes than it has rows; {adapters.AGAIN}.")
    return Swap(Path(run), info, tensors)


def check_chain(swaps: Sequence[Swap]) -> None:
    """Raises UserError unless each swap was made for the first one's base, or for the result of the one before it, and
    no two learned the same class."""
    base = swaps[0].info["base_sha256"]
    taught: dict[str, str] = {}
    for before, swap in zip([None, *swaps], swaps, strict=False):
        results = [base] + ([before.info["result_sha256"]] if before else [])
        if swap.info["base_sha256"] not in results:
            raise UserError(
                f"{swap.run} was made for another base than {swaps[0].run}; give them in the order of training."
            )
        for name in swap.learned:
            if name in taught:
                raise UserError(f"{taught[name]} and {swap.run} both learned class {name!r}; leave one of them out.")
            taught[name] = str(swap.run)


def stacked(swaps: Sequence[Swap], left_out: str = "") -> Swap:
    """All swaps as one adapter on the first one's base: updates add up, head rows stand side by side.

    left_out: name of one that is not put on.

    Raises:
        UserError: they do not fit together (see `check_chain`), or nothing of that name is among them.
    """
    check_chain(swaps)
    if left_out and left_out not in [swap.name for swap in swaps]:
        raise UserError(f"no swap {left_out!r} is in the stack; it holds: {', '.join(swap.name for swap in swaps)}.")
    chosen = [swap for swap in swaps if swap.name != left_out]
    if not chosen:
        raise UserError("nothing is left of the stack; the base model is what remains.")
    layers = dict.fromkeys(name for swap in chosen for name in swap.info["layers"])
    tensors, layouts = {}, {}
    for layer in layers:
        own = [swap for swap in chosen if layer in swap.info["layers"]]
        layouts[layer] = own[-1].info["layers"][layer]  # what lies below the last one is its past
        scale = layouts[layer]["scale"]
        parts = [[swap.tensors[f"{PREFIX}{layer}.lora_{x}.weight"] for swap in own] for x in "AB"]
        ratios = [swap.info["layers"][layer]["scale"] / scale for swap in own]  # 1 for the last: its bits stay
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = torch.cat(parts[0]).contiguous()
        scaled = [b * ratio for b, ratio in zip(parts[1], ratios, strict=True)]
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = torch.cat(scaled, 1).contiguous()
    missing = {name for swap in swaps if swap.name == left_out for name in swap.learned}
    classes = [c for c in dict.fromkeys(c for swap in chosen for c in swap.classes) if c not in missing]
    head, rows = _head(chosen, classes)
    sizes = {k: v for swap in reversed(swaps) for k, v in _sizes(swap).items()}
    info = {"rows": rows, "layers": layouts, "base": {"parameters": None, "mean_abs": {n: sizes[n] for n in layers if n in sizes}},
            "base_sha256": swaps[0].info["base_sha256"], "result_sha256": None, "classes": classes, "method": "stack",
            "plan": _plan(chosen, classes), "stack": [str(swap.run) for swap in swaps], "left_out": left_out}  # fmt: skip
    return Swap(chosen[0].run, info, tensors | head)


def _sizes(swap: Swap) -> dict[str, float]:
    found = swap.info["base"]["mean_abs"]
    return found if isinstance(found, dict) else dict(zip(swap.info["layers"], found, strict=True))


def _head(swaps: Sequence[Swap], classes: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """(head parameters with the rows of every swap, which rows those are); rows behind the classes stay last."""
    tensors: dict[str, Tensor] = {}
    rows: dict[str, list[int]] = {}
    for name in dict.fromkeys(name for swap in swaps for name in swap.info["rows"]):
        own = [swap for swap in swaps if name in swap.info["rows"]]
        first = own[0].tensors[PREFIX + name]
        body = {c: first[i] for i, c in enumerate(own[0].classes)}
        for swap in own:
            value = swap.tensors[PREFIX + name]
            new = [c for c in swap.classes if c not in body or c in swap.learned]
            body |= {c: value[swap.classes.index(c)] for c in new}
        value = torch.cat([torch.stack([body[c] for c in classes]), first[len(own[0].classes) :]])
        tensors[PREFIX + name] = value.contiguous()
        rows[name] = sorted(classes.index(c) for swap in own for c in swap.learned)
    return tensors, rows


def _plan(swaps: Sequence[Swap], classes: Sequence[str]) -> dict[str, Any]:
    learned = [c for swap in swaps for c in swap.learned]
    gone = [c for swap in swaps for action, groups in swap.info["plan"]["steps"] if action == "forget"
            for g in groups for c in swap.info["plan"]["groups"][g] if c in classes]  # fmt: skip
    groups = {"learn": [c for c in learned if c not in gone], "forget": list(dict.fromkeys(gone))}
    scored = dict.fromkeys(c for swap in swaps for own in swap.info["plan"]["groups"].values() for c in own)
    groups["retain"] = [c for c in scored if c in classes and c not in {*learned, *gone}]
    groups = {name: own for name, own in groups.items() if own}
    steps = [[action, [action]] for action in ("learn", "forget") if action in groups]
    return {"name": "stack", "groups": groups, "steps": steps, "keep_until_forgotten": False}


def write(stack: Swap, output: Path) -> None:
    """Writes a stack as a run folder that evaluate, predict, export and further swaps read.

    Raises:
        UserError: there is something already.
    """
    if output.exists():
        raise UserError(f"{output} exists already; choose another folder.")
    record = read_json(Path(stack.info["stack"][0]) / "config.json")
    runs = [read_json(Path(run) / "config.json")["flags"] for run in stack.info["stack"]]
    places = [p for flags in runs for key in ("data", "learn_data") for p in str(flags.get(key) or "").split(",") if p]
    more = [place for place in dict.fromkeys(places) if place not in str(runs[0].get("data") or "").split(",")]
    if "learn_data" in record["flags"]:
        record["flags"]["learn_data"] = ",".join(more)
    record["flags"]["output_dir"] = str(output)
    record["identity"] = {**record["identity"], "plan": stack.info["plan"]}
    names = {layer: layout["rank"] for layer, layout in stack.info["layers"].items()}
    ranks = {n: stack.tensors[f"{PREFIX}{n}.lora_A.weight"].shape[0] for n in names}
    alphas = {n: stack.info["layers"][n]["scale"] * ranks[n] for n in names}
    config = adapters.peft_config(ranks, alphas, stack.info["rows"], stack.info["base_sha256"])
    data = to_bytes(stack.tensors, metadata={"format": "pt"})
    adapters.write(output / "adapter", data, config, {**stack.info, "weights": adapters.digest(data)})
    write_json(output / "config.json", record)


def merge(swap: Swap, output: Path) -> None:
    """Writes the base's weights with the updates added and the head replaced, as one .safetensors under its own names.

    Raises:
        UserError: something is there already; see `merged`.
    """
    if output.exists():
        raise UserError(f"{output} exists already; choose another file.")
    tensors = {name: value.contiguous().clone() for name, value in merged(swap).items()}  # a file may tie some
    write_bytes(output, to_bytes(tensors, metadata={"format": "pt", "classes": json.dumps(swap.classes)}))


def merged(swap: Swap) -> dict[str, Tensor]:
    """The weights of the base (a run, a folder or a file with whole weights, or an earlier swap) with the update added.

    Raises:
        UserError: the base is not there, names its weights otherwise, or is another than the swap was made for.
    """
    base = Path(str(read_json(swap.run / "config.json")["flags"].get("checkpoint") or "?"))
    state, sizes = merged(read(base)) if (base / "adapter").is_dir() else _weights(base), _sizes(swap)
    places = {
        n: next((k for k in (f"{n}.weight", f"{n}.in_proj_weight") if k in state), "") for n in swap.info["layers"]
    }
    missing = [f"{n}.weight" for n, key in places.items() if not key] + [n for n in swap.info["rows"] if n not in state]
    if missing:
        raise UserError(f"{base} has no {missing[0]}: it names its weights otherwise; {EXPORT}")
    for layer, key in places.items():
        weight = state[key].float()  # a file may hold halves
        if not math.isclose(sizes.get(layer, math.nan), weight.double().abs().mean().item(), rel_tol=SAME):
            raise UserError(f"{swap.run} was made for other base weights than {base} holds.")
        a, b = swap.factors(layer)
        state[key] = weight + b @ a
    return state | {name: swap.tensors[PREFIX + name] for name in swap.info["rows"]}


def _weights(base: Path) -> dict[str, Tensor]:
    found = next((p for p in (base / "model" / FILE, base / FILE, base) if p.is_file()), None)
    if found is None:
        raise UserError(f"the base, {base}, is no file and no folder with {FILE}; {EXPORT}")
    return read_weights(found).state


def difference(one: Swap, other: Swap) -> Mapping[str, Mapping[str, float]]:
    """Block -> Frobenius norm of each update and of their difference."""
    from common.observer import moved  # the observer reads adapters

    def factors(swap: Swap, sign: bool) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for layer in dict.fromkeys([*one.info["layers"], *other.info["layers"]]):
            owner = swap if layer in swap.info["layers"] else (other if swap is one else one)
            a, b = owner.factors(layer)
            found[layer] = (a, b) if sign and owner is swap else (a[:0], b[:, :0])
        return found

    nothing = factors(one, False)
    first, second, both = (moved(*pair) for pair in (
        (nothing, factors(one, True)), (nothing, factors(other, True)), (factors(one, True), factors(other, True))
    ))  # fmt: skip
    return {block: {one.name: first[block], other.name: second[block], "difference": both[block]} for block in both}
