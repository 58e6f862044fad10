"""One training step: forward, loss, backward, update."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels.data import Batches, Draw
from cwkernels.networks import SuperNetwork
from cwkernels.optim import SGD


class Outcome(NamedTuple):
    """What a step measured, on the network's device: nothing waits for it.

    Attributes:
        loss: the sum over architectures of the mean loss over images, a scalar.
        correct: how many of the A · N predictions were right, a scalar.
    """

    loss: Tensor
    correct: Tensor


class Step(Protocol):
    """Trains one batch; the learning rate is that of the optimizer's groups at the call."""

    def __call__(self, draw: Draw, archs: Tensor) -> Outcome:
        """Takes what a batch of N images is made of, and architectures int64 [A, D] (CPU).

        What it returns may be overwritten by the next step.
        """


class EagerStep:
    """A step by the network's and the optimizer's ordinary calls."""

    def __init__(self, net: SuperNetwork, optimizer: SGD, batches: Batches) -> None:
        self._net = net
        self._optimizer = optimizer
        self._batches = batches

    def __call__(self, draw: Draw, archs: Tensor) -> Outcome:
        """See `Step`."""
        return train_batch(self._net, self._optimizer, *self._batches.make(draw), archs)


def train_batch(
    net: SuperNetwork, optimizer: SGD, images: Tensor, labels: Tensor, archs: Tensor
) -> Outcome:
    """Trains images [N, 3, H, W] with labels int64 [N] on architectures int64 [A, D] (CPU)."""
    logits = run(net, images, archs)
    loss = loss_of(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return Outcome(loss.detach(), correct_of(logits, labels))


def run(net: SuperNetwork, images: Tensor, archs: Tensor) -> Tensor:
    """Logits [A, N, K]; one architecture alone takes the way that needs no batch of them."""
    logits: Tensor = net(images, archs) if archs.shape[0] > 1 else net(images, archs[0])[None]
    return logits


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy: the mean over N images, summed over A architectures, of logits [A, N, K].

    One architecture's at a time, so that its gradient does not depend on how many others there are.
    """
    return torch.stack([F.cross_entropy(own, labels) for own in logits]).sum()


def correct_of(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the A · N predictions are right."""
    return (logits.detach().argmax(-1) == labels).sum()
