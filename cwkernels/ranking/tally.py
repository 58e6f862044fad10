"""What is counted of an architecture's logits."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Score:
    """An architecture's result on the validation images.

    Attributes:
        accuracy: percent of them that are classified rightly; NaN if any logit is not finite.
        loss: mean cross entropy, in nats.
    """

    accuracy: float
    loss: float


class Tally:
    """Counts batch by batch.

    An architecture at a time: how a sum rounds may depend on what lies beside it.
    """

    def __init__(self) -> None:
        self._images = 0
        self._correct = 0
        self._loss = 0.0
        self._finite = True

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: logits ``[N, K]``, labels int64 ``[N]``."""
        self._images += len(labels)
        self._correct += int((logits.argmax(dim=1) == labels).sum())
        self._loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        self._finite &= bool(torch.isfinite(logits).all())

    def score(self) -> Score:
        """The result over all batches."""
        accuracy = 100 * self._correct / self._images if self._finite else float("nan")
        return Score(accuracy, self._loss / self._images)
