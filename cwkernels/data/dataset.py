"""The images in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cwkernels.data.checks import require_images, require_vector


@dataclass(frozen=True, eq=False)
class Cifar10:
    """CIFAR-10, or images that stand in for it.

    Attributes:
        train_images: uint8 ``[50000, 3, 32, 32]``, RGB, in the original order.
        train_labels: int64 ``[50000]``, 0 to 9.
        test_images: uint8 ``[10000, 3, 32, 32]``.
        test_labels: int64 ``[10000]``.
        source: where the images come from, in one line that reports print.

    Raises:
        ValueError: images of another type or shape than uint8 ``[N, 3, H, W]``, or labels that
            are not int64 ``[N]`` on the same device.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str

    def __post_init__(self) -> None:
        """Checks types and shapes."""
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            require_images("Cifar10", f"{part}_images", images)
            require_vector(
                "Cifar10", f"{part}_labels", labels, torch.int64, images, images.shape[0]
            )

    def to(self, device: torch.device | str) -> "Cifar10":
        """The same images on a device; tensors already there are not copied."""
        return Cifar10(
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
            self.source,
        )
