"""CIFAR-10 and its augmented batches, from images that stay on the device as uint8.

``load_cifar10`` finds the images and says where; ``Batches`` divides them into training and
validation images and draws the epochs; ``make_batch`` turns indices into a network's input.
"""

from cwkernels.data.augment import (
    DEVIATION,
    MEAN,
    Augmentation,
    augment,
    draw_augmentation,
    make_batch,
    normalize,
)
from cwkernels.data.batches import (
    Batches,
    Draw,
    evaluation_batches,
    training_validation_indices,
)
from cwkernels.data.cifar10 import load_cifar10
from cwkernels.data.dataset import Cifar10
from cwkernels.data.generated import generate_cifar10

__all__ = [
    "DEVIATION",
    "MEAN",
    "Augmentation",
    "Batches",
    "Cifar10",
    "Draw",
    "augment",
    "draw_augmentation",
    "evaluation_batches",
    "generate_cifar10",
    "load_cifar10",
    "make_batch",
    "normalize",
    "training_validation_indices",
]
