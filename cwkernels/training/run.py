"""A run directory: config, metrics, checkpoints; what writes it, and what reads it."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cwkernels.data import Batches
from cwkernels.files import write_whole
from cwkernels.networks import SuperNetwork
from cwkernels.ops import set_float32_conv_precision
from cwkernels.training.callbacks import Callback
from cwkernels.training.checkpoint import (
    discard_newer,
    newest_checkpoint,
    write_checkpoint,
)
from cwkernels.training.config import Config
from cwkernels.training.make_step import MAKE_STEP
from cwkernels.training.records import EpochRecord, keep_records_until, read_records
from cwkernels.training.state import capture, network_state, restore
from cwkernels.training.trainer import Trainer

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Run:
    """A directory with ``config.json``, ``metrics.jsonl`` and ``checkpoints``.

    Attributes:
        path: the directory.
        config: all that the run was started with.
    """

    path: Path
    config: Config

    def metrics(self) -> list[EpochRecord]:
        """The records of the epochs that are done."""
        return read_records(self.path / METRICS)

    def batches(self) -> Batches:
        """The run's images on the run's device, those that validate among them."""
        return self.config.data.batches(self.config.run.seed, self.config.run.device)

    def untrained(self) -> SuperNetwork:
        """The network as the run began with it, on the CPU; torch's generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.run.seed)
            return self.config.network.build()

    def network(self) -> SuperNetwork:
        """The network of the newest checkpoint that is as it was written, on the CPU.

        Raises:
            FileNotFoundError: if the run has none yet.
            DamagedCheckpoint: if all of them are damaged.
        """
        found = newest_checkpoint(self.path / CHECKPOINTS)
        if found is None:
            raise FileNotFoundError(f"run {self.path}: wanted a checkpoint, got none yet")
        net = self.untrained()
        net.load_state_dict(network_state(found[1]))
        return net

    def trainer(
        self, callbacks: Sequence[Callback] = (), *, batches: Batches | None = None
    ) -> Trainer:
        """A trainer that stands where the newest good checkpoint does, else at the beginning.

        It records into the run. What the run had written since that checkpoint goes: it is going to
        be written again. The run's threads, precision and seed become those of the process.

        Args:
            callbacks: what watches, behind the recorder.
            batches: the run's own, if they are at hand.

        Raises:
            DamagedCheckpoint: if there are checkpoints and all of them are damaged.
        """
        settings = self.config.run
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        set_float32_conv_precision(settings.precision)
        torch.manual_seed(settings.seed)
        trainer = Trainer(
            self.untrained().to(settings.device),
            self.batches() if batches is None else batches,
            self.config.recipe,
            callbacks=[Recorder(self), *callbacks],
            make_step=MAKE_STEP[settings.graphed],
        )
        self._resume(trainer)
        return trainer

    def _resume(self, trainer: Trainer) -> None:
        found = newest_checkpoint(self.path / CHECKPOINTS)
        if found is not None:
            path, state = found
            restore(trainer, state)
            discard_newer(path)
        keep_records_until(self.path / METRICS, trainer.step)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing into the run.

        Raises:
            RuntimeError: if one does.
        """
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"run {self.path}: wanted it for this process, got one that another trains"
                ) from None
            yield


def create_run(path: Path, config: Config) -> Run:
    """Starts a run directory; its config is written with what the process chose by itself.

    Raises:
        FileExistsError: if there is a run already.
        OSError: if it cannot be written.
    """
    if (path / CONFIG).exists():
        raise FileExistsError(f"run {path}: wanted no run there, got one: --resume goes on with it")
    path.mkdir(parents=True, exist_ok=True)
    run = Run(path, config.resolved())
    write_whole(path / CONFIG, (json.dumps(asdict(run.config), indent=1) + "\n").encode())
    return run


def load_run(path: Path) -> Run:
    """A run from its directory.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if its config is damaged, with the name of what is wrong.
    """
    file = path / CONFIG
    try:
        tables = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"run {path}: wanted a run's {CONFIG}, got none") from None
    except ValueError as error:
        raise ValueError(f"run {path}: wanted JSON in {CONFIG}, got: {error}") from error
    return Run(path, Config.from_mapping(tables))


class Recorder(Callback):
    """Writes a run's metrics and checkpoints.

    A checkpoint follows every epoch, every split, and `checkpoint_seconds` after the last one.

    Args:
        run: where to.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._last = time.monotonic()

    def on_split(self, trainer: Trainer) -> None:
        """Writes a checkpoint."""
        self._write(trainer)

    def on_step(self, trainer: Trainer) -> None:
        """Writes a checkpoint where one is due; the epoch's last step has its own."""
        within_epoch = trainer.step % trainer.batches.steps_per_epoch != 0
        due = time.monotonic() - self._last >= self._run.config.run.checkpoint_seconds
        if within_epoch and due:
            self._write(trainer)

    def on_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        """Appends the record, then writes a checkpoint: a resume knows what is too much."""
        with (self._run.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(record.line())
            file.flush()
            os.fsync(file.fileno())
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        write_checkpoint(self._run.path / CHECKPOINTS, capture(trainer))
        self._last = time.monotonic()
