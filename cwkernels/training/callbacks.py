"""What watches a run: nothing that a callback does may change what is trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwkernels import requires
from cwkernels.training.records import EpochRecord

if TYPE_CHECKING:
    from cwkernels.training.trainer import Trainer


class Callback:
    """Does nothing at any of the moments; a subclass overrides those that it wants."""

    def on_start(self, trainer: "Trainer") -> None:
        """Before the first step of `Trainer.fit`, of a run that goes on, too."""

    def on_split(self, trainer: "Trainer") -> None:
        """After a split and before the next step."""

    def on_step(self, trainer: "Trainer") -> None:
        """After a step."""

    def on_epoch(self, trainer: "Trainer", record: EpochRecord) -> None:
        """After an epoch and its validation."""

    def on_end(self, trainer: "Trainer") -> None:
        """After the last epoch, or after what ended the run early."""


class ProgressBar(Callback):
    """A bar of steps on stderr (tqdm), with the last epoch's record; on a terminal only.

    Raises:
        ImportError: without tqdm.
    """

    def __init__(self) -> None:
        self._tqdm = requires.module("tqdm", "ProgressBar")
        self._bar: Any = None

    def on_start(self, trainer: "Trainer") -> None:
        """Opens it where the run stands."""
        self._bar = self._tqdm.tqdm(
            total=trainer.total_steps,
            initial=trainer.step,
            desc="train",
            unit="step",
            disable=None,  # shown on a terminal only
        )

    def on_step(self, trainer: "Trainer") -> None:
        """Moves it."""
        self._bar.update()

    def on_epoch(self, trainer: "Trainer", record: EpochRecord) -> None:
        """Shows the epoch's measurements."""
        accuracy = record.validation_accuracy
        shown = {"loss": f"{record.train_loss:.3f}"}
        if accuracy is not None:
            shown["validation"] = f"{accuracy:.2f} %"
        self._bar.set_postfix(epoch=record.epoch, sets=record.weight_sets, **shown)

    def on_end(self, trainer: "Trainer") -> None:
        """Closes it."""
        self._bar.close()


class TensorBoard(Callback):
    """Writes every epoch's record as scalars, for TensorBoard to show.

    Args:
        folder: where the event files go.

    Raises:
        ImportError: without tensorboard.
    """

    def __init__(self, folder: Path) -> None:
        requires.module("tensorboard", "TensorBoard")
        board = requires.module("torch.utils.tensorboard", "TensorBoard")
        self._writer: Any = board.SummaryWriter(str(folder))

    def on_epoch(self, trainer: "Trainer", record: EpochRecord) -> None:
        """Writes all numbers of the record but the step, which is the axis."""
        for name in ("lr", "seconds", "weight_sets"):
            self._writer.add_scalar(name, getattr(record, name), record.step)
        for part in ("train", "validation", "average"):
            for what in ("loss", "accuracy"):
                value = getattr(record, f"{part}_{what}")
                if value is not None:
                    self._writer.add_scalar(f"{what}/{part}", value, record.step)

    def on_end(self, trainer: "Trainer") -> None:
        """Closes the file."""
        self._writer.close()
