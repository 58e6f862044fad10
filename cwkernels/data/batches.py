"""Training, validation and recalibration batches."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cwkernels.data.augment import Augmentation, draw_augmentation, make_batch
from cwkernels.data.checks import require, require_images, require_vector
from cwkernels.data.dataset import Cifar10
from cwkernels.data.seeds import DIVISION, EPOCH, seeded_generator


def training_validation_indices(count: int, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divides ``count`` images into training and validation images.

    The validation images are the last ``validation`` of a permutation drawn from the seed, the
    training images are the rest; both keep the permutation's order.

    Returns:
        Two int64 vectors on the CPU, ``[count − validation]`` and ``[validation]``.

    Raises:
        ValueError: ``validation`` outside 0 … count − 1, or a negative seed.
    """
    operation = "training_validation_indices"
    wanted = f"0 … {count - 1}, for {count} images"
    require(0 <= validation < count, operation, "validation", wanted, validation)
    permutation = torch.randperm(count, generator=seeded_generator(operation, seed, DIVISION))
    return permutation[: count - validation], permutation[count - validation :]


def evaluation_batches(
    images: Tensor, labels: Tensor, batch_size: int, indices: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in a fixed order, normalised only, nothing dropped.

    Args:
        images: uint8 ``[M, 3, H, W]``, on the device.
        labels: int64 ``[M]`` on the same device.
        batch_size: images in a batch, at least 1; the last batch may be smaller.
        indices: int64 ``[N]`` on the same device, the images wanted; None for all, in order.

    Returns:
        An iterator over images float32 ``[B, 3, H, W]``, channels-last, and labels int64 ``[B]``.

    Raises:
        ValueError: an argument of another type, shape or device, before the first batch; an index
            out of range at its batch (see ``make_batch``).
    """
    operation = "evaluation_batches"
    require_images(operation, "images", images)
    require_vector(operation, "labels", labels, torch.int64, images, images.shape[0])
    require(batch_size >= 1, operation, "batch_size", "at least 1", batch_size)
    if indices is None:
        indices = torch.arange(images.shape[0], device=images.device)
    ok = indices.dtype == torch.int64 and indices.dim() == 1 and indices.device == images.device
    require(ok, operation, "indices", f"int64 [N] on {images.device}", indices)
    starts = range(0, len(indices), batch_size)
    chunks = (indices[start : start + batch_size] for start in starts)
    return ((make_batch(images, chunk, None), labels[chunk]) for chunk in chunks)


class Draw(NamedTuple):
    """What a training batch is made of.

    Attributes:
        indices: int64 ``[B]`` on the device, its images.
        augmentation: B draws there.
    """

    indices: Tensor
    augmentation: Augmentation


class Batches:
    """The batches of one run, a pure function of its seed.

    Two streams of random numbers come from the seed (``seeds.seeded_generator``): one divides the
    images into training and validation images; one for each epoch orders the training images and
    then draws an augmentation for each of them. Step s of an epoch takes rows s·B … s·B+B−1 of
    both. So a batch depends on (seed, epoch, step) alone: not on the batches drawn before it, the
    device or the global generator, and a run that resumes draws what it would have drawn.

    Args:
        data: the images; the training images move to the device here, once.
        seed: the run's seed, at least 0.
        batch_size: images in a batch, at least 1.
        validation: how many of the training images validate.
        device: where the batches are made; None for where ``data`` lies.

    Attributes:
        training_indices: int64 ``[count − validation]`` on the CPU, in the permutation's order.
        validation_indices: int64 ``[validation]`` on the CPU.
        source: ``data.source``.
        images: uint8 ``[count, 3, H, W]`` on the device, those that train and those that validate.
        labels: int64 ``[count]`` there.

    Raises:
        ValueError: a count that does not fit, or a negative seed.
    """

    def __init__(
        self,
        data: Cifar10,
        *,
        seed: int,
        batch_size: int = 256,
        validation: int = 5_000,
        device: torch.device | str | None = None,
    ) -> None:
        """See the class."""
        count = data.train_images.shape[0]
        training, held_out = training_validation_indices(count, validation, seed)
        wanted = f"1 … {len(training)}, the number of training images"
        require(1 <= batch_size <= len(training), "Batches", "batch_size", wanted, batch_size)
        self.training_indices = training
        self.validation_indices = held_out
        self.seed = seed
        self.batch_size = batch_size
        self.source = data.source
        self.device = data.train_images.device if device is None else torch.device(device)
        self.images = data.train_images.to(self.device)
        self.labels = data.train_labels.to(self.device)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; the last, smaller one is dropped."""
        return len(self.training_indices) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The augmented training batches of an epoch, from a step on.

        Args:
            epoch: counts from 0.
            start: the first step, for a run that resumes within an epoch.

        Returns:
            An iterator over images float32 ``[B, 3, H, W]``, channels-last, and labels int64
            ``[B]``, on the device.

        Raises:
            ValueError: a negative epoch, or a start outside 0 … ``steps_per_epoch``.
        """
        return map(self.make, self.draws(epoch, start))

    def draws(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        """What the batches of ``epoch`` are made of, for a step that makes them itself.

        Args:
            epoch: counts from 0.
            start: the first step.

        Raises:
            ValueError: as ``epoch``.
        """
        require(epoch >= 0, "Batches.epoch", "epoch", "at least 0", epoch)
        wanted = f"0 … {self.steps_per_epoch}, the steps of an epoch"
        require(0 <= start <= self.steps_per_epoch, "Batches.epoch", "start", wanted, start)
        return self._draws(epoch, start)

    def make(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Images float32 ``[B, 3, H, W]``, channels-last, and labels int64 ``[B]`` of a batch."""
        images = make_batch(self.images, draw.indices, draw.augmentation)
        return images, self.labels[draw.indices]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All validation images, normalised only, in a fixed order, the last batch included.

        Returns:
            An iterator as ``epoch``'s.
        """
        return self._evaluation_batches(self.validation_indices)

    def recalibration(self, batches: int = 20) -> Iterator[tuple[Tensor, Tensor]]:
        """The images that re-estimate batch-norm statistics, the same for every architecture.

        They are the first ``batches`` batches of ``training_indices``, normalised only.

        Returns:
            An iterator as ``epoch``'s.

        Raises:
            ValueError: ``batches`` outside 1 … ``steps_per_epoch``.
        """
        wanted = f"1 … {self.steps_per_epoch}, the full batches of training images"
        ok = 1 <= batches <= self.steps_per_epoch
        require(ok, "Batches.recalibration", "batches", wanted, batches)
        return self._evaluation_batches(self.training_indices[: batches * self.batch_size])

    def _draws(self, epoch: int, start: int) -> Iterator[Draw]:
        count = len(self.training_indices)
        generator = seeded_generator("Batches.epoch", self.seed, EPOCH, epoch)
        order = torch.randperm(count, generator=generator)
        # The whole epoch's draws cross to the device at once, not three small copies a step.
        indices = self.training_indices[order].to(self.device)
        augmentation = draw_augmentation(count, generator).to(self.device)
        for step in range(start, self.steps_per_epoch):
            rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
            yield Draw(indices[rows], augmentation[rows])

    def _evaluation_batches(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_batches(
            self.images, self.labels, self.batch_size, indices.to(self.device)
        )
