"""Images that stand in for CIFAR-10 where it is absent."""

import torch
from torch import Tensor

from cwkernels.data.checks import require
from cwkernels.data.dataset import Cifar10
from cwkernels.data.seeds import GENERATED, seeded_generator

_CLASSES = 10
_BLOCK = 8  # pixels; twice the augmentation's shift, so a shifted pattern still resembles itself
_PATTERN, _NOISE = 120, 76  # pattern + half a pattern + noise is at most 119 + 59 + 75 = 253
_CHUNK = 10_000  # images; bounds the temporaries at 31 MB each


def generate_cifar10(
    train: int = 50_000,
    test: int = 10_000,
    *,
    seed: int = 0,
    source: str = "generated images",
) -> Cifar10:
    """Generates images of CIFAR-10's size that a network can learn to classify.

    Each class has a pattern of 8×8-pixel blocks; an image is its class's pattern, half of another
    image's pattern and uniform noise. Classes are balanced up to a remainder. The images of a seed
    do not depend on the global generator, nor the test images on the number of training images.

    Args:
        train: number of training images, at least 1.
        test: number of test images, at least 1.
        seed: at least 0.
        source: the result's ``source``.

    Raises:
        ValueError: a count below 1 or a negative seed.
    """
    require(train >= 1, "generate_cifar10", "train", "at least 1 image", train)
    require(test >= 1, "generate_cifar10", "test", "at least 1 image", test)
    generator = seeded_generator("generate_cifar10", seed, GENERATED, 0)
    cells = 32 // _BLOCK
    patterns = torch.randint(
        _PATTERN, (_CLASSES, 3, cells, cells), generator=generator, dtype=torch.uint8
    )
    patterns = patterns.repeat_interleave(_BLOCK, 2).repeat_interleave(_BLOCK, 3)
    parts = [
        _draw(patterns, count, seeded_generator("generate_cifar10", seed, GENERATED, stream))
        for stream, count in ((1, train), (2, test))
    ]
    return Cifar10(*parts[0], *parts[1], source)


def _draw(patterns: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.randperm(count, generator=generator) % _CLASSES
    distractors = torch.randint(_CLASSES, (count,), generator=generator)
    images = torch.empty(count, *patterns.shape[1:], dtype=torch.uint8)
    for start in range(0, count, _CHUNK):
        chunk = images[start : start + _CHUNK]
        torch.randint(_NOISE, chunk.shape, generator=generator, out=chunk)
        chunk += patterns[labels[start : start + _CHUNK]]
        chunk += (patterns // 2)[distractors[start : start + _CHUNK]]
    return images, labels
