"""The loop: epochs, splits, learning rate, architectures, validation."""

import resource
import time
from collections.abc import Callable, Sequence
from math import isfinite

import torch

from cwkernels.data import Batches, Draw
from cwkernels.networks import SuperNetwork
from cwkernels.optim import SGD
from cwkernels.training.average import averaged_network, make_average, update_average
from cwkernels.training.callbacks import Callback
from cwkernels.training.first_use import FirstUse
from cwkernels.training.make_step import step_of_device
from cwkernels.training.recipe import Recipe
from cwkernels.training.records import EpochRecord
from cwkernels.training.samplers import Sampler, make_sampler
from cwkernels.training.schedule import cosine, due
from cwkernels.training.step import Step
from cwkernels.training.validation import Validation, validate


class Trainer:
    """Trains a super-network: ``cw.training.Trainer(net, batches, recipe).fit()``.

    What a step does is a function of the state and the step's number: architectures, images and
    augmentation are drawn from the seed of `batches` and the number alone. So a run that goes on
    from a checkpoint (`cw.training.Run`) computes the same bits as one that was never cut.

    Args:
        net: the super-network.
        batches: training and validation images on the network's device, and the run's seed.
        recipe: everything else; None for the recipe ``default``.
        callbacks: what watches, called in their order.
        sampler: which architectures train; None for the recipe's.
        make_step: how a batch is trained, made once of the trainer: `eager_step`, `graphed_step`,
            or by default the second on a GPU and the first elsewhere; the bits are the same.

    Attributes:
        optimizer: a `cw.optim.SGD`.
        average: the averaged network, its module `average.module`, if the recipe has an
            `ema_decay`; else None.
        first_use: what the recipe's `new_sets="on_first_use"` remembers; else None.
        step: how many steps are done.
        seconds, loss, correct: what the epoch has taken and measured so far.

    Raises:
        ValueError: if the network is not on the batches' device, or a split names what is no
            decision of the space.
    """

    def __init__(
        self,
        net: SuperNetwork,
        batches: Batches,
        recipe: Recipe | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        sampler: Sampler | None = None,
        make_step: Callable[["Trainer"], Step] = step_of_device,
    ) -> None:
        self.net = net
        self.batches = batches
        self.recipe = recipe or Recipe()
        self.callbacks = list(callbacks)
        _check(net, batches, self.recipe)
        self.optimizer = SGD(
            net,
            lr=self.recipe.lr,
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
            unselected=self.recipe.unselected,
            momentum_buffers=self.recipe.momentum_buffers,
        )
        self.average = make_average(net, self.recipe.ema_decay)
        on_first_use = self.recipe.new_sets == "on_first_use"
        self.first_use = FirstUse(net, self.optimizer) if on_first_use else None
        self.step = 0
        self.seconds = 0.0
        self.loss = torch.zeros((), dtype=torch.float64, device=batches.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=batches.device)
        self._sampler = sampler or make_sampler(self.recipe.sampler, net.space, batches.seed)
        self._train = make_step(self)

    @property
    def total_steps(self) -> int:
        """The steps of the run."""
        return self.recipe.last_epoch * self.batches.steps_per_epoch

    def fit(self) -> list[EpochRecord]:
        """Trains until the last epoch from where the run stands; returns its epochs' records.

        Raises:
            ArithmeticError: if the loss of an epoch is not finite.
        """
        self.net.train()
        records = []
        try:
            for callback in self.callbacks:
                callback.on_start(self)
            while self.step < self.total_steps:
                records.append(self._train_epoch())
                for callback in self.callbacks:
                    callback.on_epoch(self, records[-1])
        finally:
            for callback in self.callbacks:
                callback.on_end(self)
        return records

    def _train_epoch(self) -> EpochRecord:
        epoch, start = divmod(self.step, self.batches.steps_per_epoch)
        if start == 0:
            self._split(epoch)
        draws = self.batches.draws(epoch, start)
        for _ in range(start, self.batches.steps_per_epoch):
            begin = time.perf_counter()
            self._train_batch(next(draws))
            self.seconds += time.perf_counter() - begin
            for callback in self.callbacks:
                callback.on_step(self)
        record = self._record(epoch)
        self.seconds = 0.0
        self.loss.zero_()
        self.correct.zero_()
        return record

    def _split(self, epoch: int) -> None:
        """Splits what is due before an epoch. A second time nothing happens."""
        splits = due(self.recipe.splits, epoch)
        for split in splits:
            self.net.split(split.decisions)
        if not splits:
            return
        self.optimizer.follow_splits()
        if self.average is not None:
            averaged_network(self.average).split_like(self.net)
        for callback in self.callbacks:
            callback.on_split(self)

    def _train_batch(self, draw: Draw) -> None:
        count = self.recipe.architectures
        archs = self._sampler.draw(self.step * count, count)
        lr = self._lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.first_use is not None:
            self.first_use.visit(archs)
        outcome = self._train(draw, archs)
        if self.average is not None:
            update_average(self.average, self.net)
        self.loss += outcome.loss
        self.correct += outcome.correct
        self.step += 1

    def _lr(self, step: int) -> float:
        steps = self.recipe.epochs * self.batches.steps_per_epoch
        return cosine(step, steps, self.recipe.lr, self.recipe.final_lr)

    def _record(self, epoch: int) -> EpochRecord:
        losses = self.recipe.architectures * self.batches.steps_per_epoch
        loss = float(self.loss) / losses
        if not isfinite(loss):
            got = f"{loss} in epoch {epoch + 1}"
            raise ArithmeticError(f"Trainer: loss: wanted a finite one, got {got}")
        own, averaged = self._validations(epoch)
        return EpochRecord(
            epoch=epoch + 1,
            step=self.step,
            seconds=self.seconds,
            lr=self._lr(self.step - 1),
            train_loss=loss,
            train_accuracy=100 * int(self.correct) / (losses * self.batches.batch_size),
            weight_sets=self.net.num_weight_sets,
            peak_memory_bytes=_peak_memory(self.batches.device),
            validation_loss=own and own.loss,
            validation_accuracy=own and own.accuracy,
            average_loss=averaged and averaged.loss,
            average_accuracy=averaged and averaged.accuracy,
        )

    def _validations(self, epoch: int) -> tuple[Validation | None, Validation | None]:
        """Of the network and of its average, where one is due."""
        due_now = (epoch + 1) % self.recipe.validate_every == 0
        if not due_now or not len(self.batches.validation_indices):
            return None, None
        own = validate(self.net, self.batches)
        if self.average is None:
            return own, None
        return own, validate(averaged_network(self.average), self.batches)


def _check(net: SuperNetwork, batches: Batches, recipe: Recipe) -> None:
    device = next(net.parameters()).device
    if device != batches.device:
        wanted = f"batches on {device}, the network's device"
        raise ValueError(f"Trainer: batches: wanted {wanted}, got {batches.device}")
    decisions = range(net.space.num_decisions)
    for split in recipe.splits:
        if not set(split.decisions or ()) <= set(decisions):
            wanted = f"decisions 0 … {len(decisions) - 1}"
            raise ValueError(f"Trainer: recipe.splits: wanted {wanted}, got {split.decisions}")


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
