"""Runs that kill themselves, for `test_resume`: each in a process of its own."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from training_cases import finish

from cwkernels.training import Callback, Trainer


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class AtSync:
    """In the middle of a write: dies at the n-th `fsync`, half of the file written."""

    number: int

    def finish(self, path: Path) -> None:
        calls, sync = count(), os.fsync

        def fsync(fd: Any) -> None:
            if next(calls) == self.number:
                if os.path.isfile(f"/proc/self/fd/{fd}"):
                    os.ftruncate(fd, os.fstat(fd).st_size // 2)
                die()
            sync(fd)

        os.fsync = fsync
        finish(path)


@dataclass(frozen=True)
class AtStep(Callback):
    """Dies after a step."""

    step: int

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            die()

    def finish(self, path: Path) -> None:
        finish(path, self)


@dataclass(frozen=True)
class AfterSplit(Callback):
    """Dies after the split before a step."""

    step: int

    def on_split(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            die()

    def finish(self, path: Path) -> None:
        finish(path, self)


Moment = AtSync | AtStep | AfterSplit


def run_until(moment: Moment, path: Path) -> int:
    """Goes on with a run in another process until it dies; returns its exit code."""
    process = _context().Process(target=moment.finish, args=(path,))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def start(
    target: Callable[[Path], None], path: Path
) -> "multiprocessing.context.ForkServerProcess":
    """A run in another process."""
    process = _context().Process(target=target, args=(path,))
    process.start()
    return process


def _context() -> ForkServerContext:
    """Processes that have everything imported and no thread started."""
    own = multiprocessing.get_context("forkserver")
    own.set_forkserver_preload(["torch", "cwkernels.training"])
    return own
