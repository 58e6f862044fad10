"""States on disk: whole or not there, checked when they are read.

A checkpoint is two files, ``NUMBER.safetensors`` and ``NUMBER.json``, the second written last. The
second holds the facts, the checksum of the first and one of itself. A good checkpoint is never
written over: numbers rise.
"""

import json
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

from cwkernels import requires
from cwkernels.files import write_whole
from cwkernels.training.state import State

KEPT = 2
"""How many checkpoints are kept: if the last one is damaged, the one before it is not."""


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not as it was written; the message names the file."""


def write_checkpoint(folder: Path, state: State) -> Path:
    """Writes a state as the newest checkpoint, then removes all but the last two.

    Returns:
        The JSON file.

    Raises:
        ImportError: without safetensors.
        OSError: if it cannot be written; the checkpoints before it are still there.
    """
    safetensors = requires.module("safetensors.torch", "write_checkpoint")
    folder.mkdir(exist_ok=True)
    number = max(map(_number, _checkpoints(folder)), default=0) + 1
    path = folder / f"{number:06}.json"
    tensors: bytes = safetensors.save(dict(state.tensors))
    body = {"facts": state.facts, "tensors": sha256(tensors).hexdigest()}
    write_whole(path.with_suffix(".safetensors"), tensors)
    write_whole(path, json.dumps({"body": body, "sha256": _checksum(body)}, indent=1).encode())
    _remove_all_but(_checkpoints(folder)[:KEPT], folder)
    return path


def read_checkpoint(path: Path) -> State:
    """Reads a checkpoint by its JSON file.

    Raises:
        DamagedCheckpoint: if either file is missing, cut or altered.
        ImportError: without safetensors.
    """
    safetensors = requires.module("safetensors.torch", "read_checkpoint")
    body = _read_body(path)
    beside = path.with_suffix(".safetensors")
    try:
        tensors = beside.read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpoint(f"checkpoint {beside}: wanted a file, got none") from None
    if sha256(tensors).hexdigest() != body["tensors"]:
        raise DamagedCheckpoint(
            f"checkpoint {beside}: wanted the bytes that were written, got another checksum"
        )
    return State(safetensors.load(tensors), body["facts"])


def newest_checkpoint(folder: Path) -> tuple[Path, State] | None:
    """The newest checkpoint that is as it was written, None if there has been none.

    Each one that is not is a warning with its name.

    Raises:
        DamagedCheckpoint: if none of them is.
    """
    damage = None
    for path in _checkpoints(folder):
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpoint as error:
            damage = error
            warnings.warn(f"{error}; trying the one before it", stacklevel=2)
    if damage is not None:
        raise damage
    return None


def discard_newer(path: Path) -> None:
    """Removes the checkpoints behind one: a run that goes on from it writes them anew."""
    for newer in _checkpoints(path.parent):
        if _number(newer) > _number(path):
            newer.unlink()


def _checkpoints(folder: Path) -> list[Path]:
    """The JSON files, the newest first."""
    return sorted(folder.glob("[0-9]*.json"), key=_number, reverse=True)


def _number(path: Path) -> int:
    digits = path.name.partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _remove_all_but(kept: list[Path], folder: Path) -> None:
    """Removes the other checkpoints, and what a kill in the middle of a write has left."""
    stays = {path.with_suffix(suffix) for path in kept for suffix in (".json", ".safetensors")}
    # JSON before tensors: no checkpoint ever looks damaged for being removed.
    for pattern in ("[0-9]*.json", "[0-9]*.safetensors", ".[0-9]*"):
        for path in set(folder.glob(pattern)) - stays:
            path.unlink(missing_ok=True)


def _read_body(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        body: dict[str, Any] = content["body"]
        checksum = content["sha256"]
    except (ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"checkpoint {path}: wanted JSON, got a damaged file") from None
    if _checksum(body) != checksum:
        raise DamagedCheckpoint(
            f"checkpoint {path}: wanted the facts that were written, got another checksum"
        )
    return body


def _checksum(body: dict[str, Any]) -> str:
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
