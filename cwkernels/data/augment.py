"""From uint8 images on the device to a network's input."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.data.checks import require, require_images, require_vector

MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, eq=False)
class Augmentation:
    """One draw for each of N images: an optional flip, then a shift.

    Attributes:
        dy: int64 ``[N]``, pixels that an image's content moves down (negative: up).
        dx: int64 ``[N]``, pixels that it moves right, after the flip.
        flip: bool ``[N]``, whether it is mirrored left to right first.
    """

    dy: Tensor
    dx: Tensor
    flip: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return self.flip.shape[0]

    def __getitem__(self, images: slice) -> "Augmentation":
        """The draws of some of the images, as views."""
        return Augmentation(self.dy[images], self.dx[images], self.flip[images])

    def to(self, device: torch.device | str) -> "Augmentation":
        """The same draws on a device."""
        return Augmentation(self.dy.to(device), self.dx.to(device), self.flip.to(device))


def draw_augmentation(n: int, generator: torch.Generator, shift: int = 4) -> Augmentation:
    """Draws the paper's training augmentation (table 4) for ``n`` images.

    Shifts are uniform over −shift … +shift in either direction, flips have probability 1/2, all
    independent. Stock equivalent: the draws of torchvision's ``RandomHorizontalFlip()`` and
    ``RandomCrop(32, padding=shift)``.

    Args:
        n: number of images, at least 0.
        generator: the only source of randomness; the draws lie on its device.
        shift: the largest shift in pixels, at least 0.

    Raises:
        ValueError: a negative ``n`` or ``shift``.
    """
    require(n >= 0, "draw_augmentation", "n", "at least 0 images", n)
    require(shift >= 0, "draw_augmentation", "shift", "at least 0 pixels", shift)
    device = generator.device
    dy, dx = torch.randint(-shift, shift + 1, (2, n), generator=generator, device=device)
    flip = torch.randint(2, (n,), generator=generator, device=device) == 1
    return Augmentation(dy, dx, flip)


def normalize(images: Tensor) -> Tensor:
    """Evaluation transforms: ``(images / 255 − MEAN) / DEVIATION`` per channel.

    Stock equivalent: torchvision's ``ToTensor()`` and ``Normalize(MEAN, DEVIATION)``.

    Args:
        images: uint8 ``[N, 3, H, W]``.

    Returns:
        float32 ``[N, 3, H, W]``, channels-last.

    Raises:
        ValueError: images of another type or shape.
    """
    require_images("normalize", "images", images)
    return _batch(images, _all(images), None)


def augment(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Training transforms: flips, shifts and normalises each image by its own draw.

    What a shift uncovers is black, that is 0 in the raw image and ``−MEAN / DEVIATION`` in the
    result: the pipeline that NAS-Bench-201 and most others use for CIFAR-10
    (``RandomHorizontalFlip``, ``RandomCrop(32, padding=4)``, ``ToTensor``, ``Normalize``), which
    table 4 of the paper does not contradict.

    Args:
        images: uint8 ``[N, 3, H, W]``.
        augmentation: N draws on the images' device.

    Returns:
        float32 ``[N, 3, H, W]``, channels-last.

    Raises:
        ValueError: images or draws of another type, shape or device.
    """
    require_images("augment", "images", images)
    _require_augmentation("augment", augmentation, images, images.shape[0])
    return _batch(images, _all(images), augmentation)


def make_batch(images: Tensor, indices: Tensor, augmentation: Augmentation | None) -> Tensor:
    """Takes images by index and applies the training or the evaluation transforms.

    Equals ``augment(images[indices], augmentation)``, or ``normalize(images[indices])`` where
    ``augmentation`` is None, by one call of ``cw.ops.batch``. Nothing synchronises on a GPU, so
    indices are checked on the CPU only; on a GPU one out of range makes an image of NaN.

    Args:
        images: uint8 ``[M, 3, H, W]``, all images, on the device.
        indices: int64 ``[N]`` on the same device, each in 0 … M−1, in any order, repeats allowed.
        augmentation: N draws on the same device, one for each index; None for evaluation.

    Returns:
        float32 ``[N, 3, H, W]``, channels-last.

    Raises:
        ValueError: an argument of another type, shape or device, or an index out of range.
    """
    require_images("make_batch", "images", images)
    ok = indices.dtype == torch.int64 and indices.dim() == 1 and indices.device == images.device
    require(ok, "make_batch", "indices", f"int64 [N] on {images.device}", indices)
    if augmentation is not None:
        _require_augmentation("make_batch", augmentation, images, indices.shape[0])
    if indices.device.type == "cpu" and len(indices):
        low, high = (int(bound) for bound in indices.aminmax())
        ok = low >= 0 and high < images.shape[0]
        require(ok, "make_batch", "indices", f"0 … {images.shape[0] - 1}", f"{low} … {high}")
    return _batch(images, indices, augmentation)


def _all(images: Tensor) -> Tensor:
    return torch.arange(images.shape[0], device=images.device)


def _batch(images: Tensor, indices: Tensor, augmentation: Augmentation | None) -> Tensor:
    mean, deviation = constants(images.device)
    shifts, flips = None, None
    if augmentation is not None:
        shifts, flips = torch.stack([augmentation.dy, augmentation.dx], 1), augmentation.flip
    return ops.batch(images, indices, shifts, flips, mean=mean, deviation=deviation)


def _require_augmentation(
    operation: str, augmentation: Augmentation, images: Tensor, count: int
) -> None:
    for name, dtype in (("dy", torch.int64), ("dx", torch.int64), ("flip", torch.bool)):
        vector = getattr(augmentation, name)
        require_vector(operation, f"augmentation.{name}", vector, dtype, images, count)


@cache
def constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """MEAN and DEVIATION in units of a uint8 image, ``[3]``.

    Kept per device: a copy from the host for each batch would synchronise, and could not be
    captured in a CUDA graph.
    """
    with torch.inference_mode(False):
        mean, deviation = torch.tensor((MEAN, DEVIATION), dtype=torch.float64) * 255
        return (
            mean.to(device, torch.float32),
            deviation.to(device, torch.float32),
        )
