"""One stage: a command with a limit of time, what its end means, and its record."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT = 540.0
"""Seconds of a stage. A machine that allows ten minutes a command needs some for start and end."""
TAIL = 6000
"""Characters of the output that a record keeps."""


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    output: str


@dataclass(frozen=True)
class Verdict:
    """What the end of a stage means.

    Attributes:
        wrong: why it failed; empty if it passed.
        facts: what it found, in plain types.
    """

    wrong: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def by_exit_code(finished: Finished) -> Verdict:
    """Passed if the command says so; its last line says why not."""
    if not finished.code:
        return Verdict("")
    last = (finished.output.strip().splitlines() or ["it said nothing"])[-1]
    return Verdict(f"exit code {finished.code}: {last}")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: "memcheck.copy_rows.1", the name of its record too.
        command: what runs.
        judge: what its end means.
        environment: beside this process's.
        limit: seconds after which it is ended.
    """

    name: str
    command: tuple[str, ...]
    judge: Callable[[Finished], Verdict] = by_exit_code
    environment: Mapping[str, str] = field(default_factory=dict)
    limit: float = LIMIT


def run(stage: Stage, folder: Path, seconds: float) -> dict[str, Any]:
    """Runs a stage for at most `seconds`; its record: "passed", "FAILED" or "out of time"."""
    start = time.perf_counter()
    log = folder / f"{stage.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            stage.command,
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | stage.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(min(seconds, stage.limit))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    text = log.read_text(encoding="utf-8", errors="replace")
    record: dict[str, Any] = {
        "stage": stage.name,
        "command": list(stage.command),
        "seconds": round(time.perf_counter() - start, 1),
        "tail": text[-TAIL:],
    }
    if code is None:
        return record | {"status": "out of time", "wrong": "ended at its limit", "facts": {}}
    verdict = stage.judge(Finished(code, text))
    status = "FAILED" if verdict.wrong else "passed"
    return record | {"status": status, "wrong": verdict.wrong, "facts": dict(verdict.facts)}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file that is whole or not there, with nothing but what every Python has."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what the stage started and left running: it is a session of its own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
