"""Scores appended to a file as they come, so that a ranking can be cut at any moment and go on."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from cwkernels.files import write_whole
from cwkernels.ranking.tally import Score

SCHEMA = "cwkernels-scores-1"

Header = Mapping[str, Any]


class ScoreLog:
    """A JSON Lines file: a header that says what was scored and how, then a score a line.

    A last line without its end is what a cut left of a write: it is dropped, its architecture is
    scored again.

    Args:
        path: the file; it is made if it is not there.
        header: plain types. A file that stands there must have been made with the same, but for
            the entry ``"about"``, which is for people.

    Attributes:
        scores: what the file holds, by the space's own string.

    Raises:
        ValueError: for a file of another header, naming the first entry that differs, or one that
            is damaged elsewhere than at its end.
        OSError: if it cannot be read or written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.scores: dict[str, Score] = {}
        if not path.exists():
            write_whole(path, _line(header).encode())
            return
        lines, whole = read_lines(path)
        require_same(path, lines[0], header)
        self.scores = {arch: score for arch, score in map(parse, lines[1:])}
        if whole < path.stat().st_size:
            os.truncate(path, whole)

    def append(self, scores: Mapping[str, Score]) -> None:
        """Writes scores behind those that are there, and syncs.

        Raises:
            OSError: if there is no room or the file cannot be written; a later run drops what was
                half written and goes on.
        """
        lines = [
            _line({"arch": arch, "accuracy": _plain(s.accuracy), "loss": _plain(s.loss)})
            for arch, s in scores.items()
        ]
        try:
            with self.path.open("ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            wanted = f"room for {len(scores)} scores"
            message = f"rank: {self.path}: wanted {wanted}, got: {error.strerror}"
            raise OSError(error.errno, message) from error
        self.scores.update(scores)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The header and the scores of a file, and how many of its bytes they take.

    Raises:
        ValueError: if it is empty, is no such file, or has a damaged line that is not its last.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    lines = []
    for number, text in enumerate(content[:whole].splitlines(), 1):
        try:
            line = json.loads(text)
            known = isinstance(line, dict) and ("arch" in line or number == 1)
        except ValueError:
            known = False
        if not known:
            raise ValueError(f"rank: {path}: line {number}: wanted a score, got {text[:40]!r}")
        lines.append(line)
    if not lines or lines[0].get("schema") != SCHEMA:
        raise ValueError(f"rank: {path}: wanted a file of scores ({SCHEMA}), got another")
    return lines, whole


def require_same(path: Path, stored: Header, wanted: Header) -> None:
    """Raises ValueError naming the first entry of a header that is not as wanted."""
    for key in {**wanted, **stored}:
        if key != "about" and stored.get(key) != wanted.get(key):
            raise ValueError(
                f"rank: {path}: {key}: wanted {_short(wanted.get(key))} to go on with it, "
                f"got {_short(stored.get(key))}"
            )


def parse(line: Mapping[str, Any]) -> tuple[str, Score]:
    """An architecture's string and its score."""
    accuracy, loss = (math.nan if line[key] is None else line[key] for key in ("accuracy", "loss"))
    return line["arch"], Score(accuracy, loss)


def digest(net: nn.Module) -> str:
    """SHA-256 of a network's state, names, shapes and values: what its scores belong to."""
    hashed = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hashed.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content) + "\n"


def _plain(number: float) -> float | None:
    """A number as JSON has it, which has no NaN."""
    return number if math.isfinite(number) else None


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
