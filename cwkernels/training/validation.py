"""How well the super-network does as a whole, on images that do not train it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from cwkernels.data import Batches
from cwkernels.data.seeds import VALIDATED, seeded_generator
from cwkernels.networks import SuperNetwork
from cwkernels.nn import RunningStatistics
from cwkernels.training.step import correct_of, loss_of


class Validation(NamedTuple):
    """Mean cross-entropy, and accuracy in percent."""

    loss: float
    accuracy: float


def validate(net: SuperNetwork, batches: Batches) -> Validation:
    """Runs all validation images, each batch by an architecture of its own.

    The architectures are uniform, drawn from the run's seed, the same at every call, so that epochs
    compare. Every batch is normalised by its own statistics: running ones belong to no architecture
    in particular, and recalibrating each costs more than the epoch (`cw.ranking.rank` does that).
    The network's state is afterwards what it was, bit for bit.

    Raises:
        ValueError: if there are no validation images.
    """
    count = len(batches.validation_indices)
    if not count:
        raise ValueError("validate: batches: wanted validation images, got none")
    generator = seeded_generator("validate", batches.seed, VALIDATED)
    loss = torch.zeros((), dtype=torch.float64, device=batches.device)
    correct = torch.zeros((), dtype=torch.int64, device=batches.device)
    with torch.no_grad(), _batch_statistics(net):
        for images, labels in batches.validation():
            logits = net(images, net.space.sample(1, generator=generator)[0])[None]
            loss += loss_of(logits, labels) * len(labels)
            correct += correct_of(logits, labels)
    return Validation(float(loss) / count, 100 * int(correct) / count)


@contextmanager
def _batch_statistics(net: SuperNetwork) -> Iterator[None]:
    """Training mode, whose effects on running statistics are undone."""
    training, last_rows = net.training, net.last_rows
    modules = [module for module in net.modules() if isinstance(module, RunningStatistics)]
    kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    net.train()
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
        net.last_rows = last_rows
        net.train(training)
