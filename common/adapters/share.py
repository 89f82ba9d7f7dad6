"""Finished swaps on a model hub: what is uploaded, uploading it, and taking it from there.

Nothing is sent or fetched but by `push --yes`, `pull`, or an `hf:NAME` that is given as a run. Logins are the hub
library's own: `hf auth login`, or its environment variables.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import adapters
from common.errors import UserError, first_line
from common.files import find_files, user_path
from common.hub import NAME, PREFIX, is_folder
from common.record import name_of, read_run_config, write_bytes

PLACES = ("data", "output_dir", "cache", "config", "plan", "file", "path", "wandb", "weights", "checkpoint")
FILES = ("swap.json", "adapter_config.json", "adapter_model.safetensors")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def contents(run: Path, licence: str = "") -> dict[str, bytes]:
    """File name -> content of what `push` uploads: the adapter, the model card, and a record without local names.

    Raises:
        UserError: no finished swap with an adapter, or a licence that is no identifier.
    """
    if licence and not LICENCE.fullmatch(licence):
        raise UserError(f"--license {licence!r}: the hub takes identifiers such as mit, apache-2.0 or other.")
    info, _ = adapters.read(run / "adapter")
    record = public(read_run_config(run))
    told = {**info, "run": name_of(record["identity"])}
    told.pop("stack", None)  # paths of runs
    files = {f"adapter/{name}": (run / "adapter" / name).read_bytes() for name in FILES}
    files["adapter/swap.json"] = _json(told)
    return {"README.md": adapters.card({**told, "license": licence}).encode(), "config.json": _json(record), **files}


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def public(record: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the plan and the flags that say how the model is built and images are read: no paths, no
    machine, no command line. A base model of the hub stays named.
    """
    flags = {name: value for name, value in record["flags"].items() if _harmless(name, value)}
    base = str(record["flags"].get("checkpoint") or "")
    if base.startswith(PREFIX) and not user_path(base.removeprefix(PREFIX)).exists():
        flags["checkpoint"] = base
    kept = {name: record[name] for name in ("precision", "threads") if name in record}
    known = {name: record["identity"][name] for name in ("domain", "plan") if name in record["identity"]}
    return {"identity": known, "flags": flags, **kept}


def _harmless(name: str, value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    local = any(
        isinstance(t, str) and (t.startswith(("/", "~", ".", "@")) or os.sep in t or os.path.exists(t))
        for t in texts
        if t
    )
    return not local and not any(place in name for place in PLACES)


def push(run: Path, name: str, yes: bool = False, licence: str = "", private: bool = False) -> str:
    """Uploads a swap, or says what would be uploaded; the text to print.

    Args:
        name: OWNER/NAME on the hub. yes: really upload, with the login of the hub's own library.

    Raises:
        UserError: nothing to upload, no name, or the hub refused.
    """
    if "/" not in name or not NAME.fullmatch(name):
        raise UserError(f"`{name}` is no name on the hub; it is OWNER/NAME.")
    files = contents(run, licence)
    lines = [f"{size:>12,} bytes  {file}" for file, size in ((file, len(data)) for file, data in files.items())]
    if not yes:
        told = files["README.md"].decode() + "\n--- config.json\n" + files["config.json"].decode()
        head = f"would upload to {name} ({'private' if private else 'public'}); nothing was sent, add --yes to do it:"
        return "\n".join([head, *lines, "", "--- README.md", told])
    from huggingface_hub import CommitOperationAdd, HfApi  # it alone talks to the hub

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=data) for file, data in files.items()]
        api.create_commit(name, operations, commit_message="Adapter of a knowledge swap")
    except Exception as error:  # the library raises many kinds
        raise UserError(f"{name} was not uploaded: {first_line(error)}; log in with `hf auth login`.") from None
    return "\n".join([f"uploaded to {name}:", *lines])


def fetched(name: str, or_model: bool = False) -> Path:
    """The cached files of a swap on the hub.

    Args:
        or_model: a model of transformers will do as well; of it config.json is fetched.

    Raises:
        UserError: no such name, no network, or no swap there.
    """
    from huggingface_hub import snapshot_download

    if not NAME.fullmatch(name):
        raise UserError(f"`{name}` is no name on the hub; it is OWNER/NAME.")
    wanted = ["config.json", "README.md", *(f"adapter/{file}" for file in FILES)]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the library raises many kinds
        raise UserError(f"`{name}` cannot be taken from the hub: {first_line(error)}.") from None
    if not (or_model and is_folder(folder)):
        adapters.read(folder / "adapter")
    return folder


def pull(name: str, output: Path) -> Path:
    """Copies a swap of the hub into a new run folder. Raises UserError: see `fetched`; there is something already."""
    if output.exists():
        raise UserError(f"{output} exists already; choose another folder.")
    folder = fetched(name.removeprefix(PREFIX))
    for file in find_files([str(folder)], (".json", ".md", ".safetensors"), "files"):
        write_bytes(output / file.relative_to(folder), file.read_bytes())
    return output
