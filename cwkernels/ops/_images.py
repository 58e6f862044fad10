"""Images [A or 1, N, C, H, W]: one batch for each architecture, or one that all share."""

import torch
from torch import Tensor


def in_channels_last(images: Tensor) -> Tensor:
    """The same images [..., N, C, H, W], channels-last in memory; a copy unless they lie so."""
    if images.dim() == 4:
        return images.contiguous(memory_format=torch.channels_last)
    last = images.movedim(-3, -1)
    return images if last.is_contiguous() else last.contiguous().movedim(-1, -3)


def batches_of(input: Tensor) -> Tensor:
    """Images [N, C, H, W] or [A, N, C, H, W] as [1 or A, N, C, H, W], channels-last in memory."""
    images = in_channels_last(input)
    return images if images.dim() == 5 else images.unsqueeze(0)


def images_of(images: Tensor, a: int) -> Tensor:
    """The images [N, C, H, W] of architecture `a`."""
    return images[a if images.shape[0] > 1 else 0]


def channels_last(images: Tensor, architectures: int | torch.SymInt) -> Tensor:
    """An uninitialised tensor of the images' sizes, channels-last in memory."""
    _, n, c, height, width = images.shape
    return images.new_empty((architectures, n, height, width, c)).permute(0, 1, 4, 2, 3)
