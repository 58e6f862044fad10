"""What an epoch left behind: one line of a run's ``metrics.jsonl``."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cwkernels.files import write_whole


@dataclass(frozen=True)
class EpochRecord:
    """Measurements of one epoch.

    Attributes:
        epoch: how many epochs are done with it, from 1.
        step: how many steps.
        seconds: that training took, without validation; of a run that was cut, only those after
            its last checkpoint and those that the checkpoint knew of.
        lr: of its last step.
        train_loss: mean cross-entropy over batches and their architectures.
        train_accuracy: percent, likewise.
        weight_sets: of one cell, at its end.
        peak_memory_bytes: of the process so far, or what torch allocated on a GPU.
        validation_loss, validation_accuracy: see `cw.training.validate`; None where not validated.
        average_loss, average_accuracy: the same of the averaged weights, if there are any.
    """

    epoch: int
    step: int
    seconds: float
    lr: float
    train_loss: float
    train_accuracy: float
    weight_sets: int
    peak_memory_bytes: int
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    average_loss: float | None = None
    average_accuracy: float | None = None

    def line(self) -> str:
        """One line of JSON, with its end."""
        return json.dumps(asdict(self), allow_nan=False) + "\n"


def read_records(path: Path) -> list[EpochRecord]:
    """The records of a file, none if there is no file; a last line that was cut is left out.

    Raises:
        ValueError: for another line that is no record.
    """
    return list(_records(path)) if path.exists() else []


def _records(path: Path) -> Iterator[EpochRecord]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    names = {field.name for field in fields(EpochRecord)}
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            return
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.keys() != names:
            raise ValueError(f"read_records: {path}: wanted an epoch's record, got line {number}")
        yield EpochRecord(**content)


def keep_records_until(path: Path, step: int) -> None:
    """Drops the records of steps that a run is going to take again."""
    kept = [record.line() for record in read_records(path) if record.step <= step]
    if path.exists():
        write_whole(path, "".join(kept).encode())
