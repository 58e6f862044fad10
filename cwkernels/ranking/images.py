"""The images that every architecture is scored on: made once, the same for all."""

import hashlib
from dataclasses import dataclass
from itertools import chain, islice

from torch import Tensor

from cwkernels.data import Batches
from cwkernels.ranking.options import RankingOptions


@dataclass(frozen=True, eq=False)
class ScoringImages:
    """Batches that are kept as a network takes them: 12 kB an image of CIFAR-10.

    Attributes:
        recalibration: float32 ``[B, 3, H, W]`` each, in order.
        validation: the same with labels int64 ``[B]``.
    """

    recalibration: list[Tensor]
    validation: list[tuple[Tensor, Tensor]]

    def digest(self) -> str:
        """SHA-256 of all of them, in order."""
        hashed = hashlib.sha256()
        for tensor in [*self.recalibration, *chain.from_iterable(self.validation)]:
            hashed.update(f"{list(tensor.shape)}".encode())
            hashed.update(tensor.cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()


def scoring_images(data: Batches, options: RankingOptions) -> ScoringImages:
    """The images that the options ask for, from a run's data.

    Augmented ones are the first batches of the run's first epoch.

    Raises:
        ValueError: if the data have fewer training batches or validation images.
    """
    batches = options.batches
    available = len(data.validation_indices)
    wanted = available if options.images is None else options.images
    if not 1 <= wanted <= available:
        raise ValueError(f"rank: images: wanted 1 … {available} validation images, got {wanted}")
    if options.way.augmented and batches > data.steps_per_epoch:
        most = data.steps_per_epoch
        raise ValueError(f"rank: batches: wanted at most {most}, an epoch's, got {batches}")
    recalibration = []
    if options.way.passes:
        source = data.epoch(0) if options.way.augmented else data.recalibration(batches)
        recalibration = [images for images, _ in islice(source, batches)]
    validation, left = [], wanted
    for images, labels in data.validation():
        if left > 0:
            validation.append((images[:left], labels[:left]))
        left -= len(labels)
    return ScoringImages(recalibration, validation)
