"""Images [A or 1, N, C, H, W]: one batch for each architecture, or one that all share."""

import torch
from torch import Tensor


def images_of(images: Tensor, a: int) -> Tensor:
    """The images [N, C, H, W] of architecture `a`."""
    return images[a if images.shape[0] > 1 else 0]


def sum_shared(gradients: list[Tensor], images: Tensor) -> Tensor:
    """Gradients [N, C, H, W] of each architecture's images, as the gradient of `images`.

    Of shared images it is their sum, in order.
    """
    if images.shape[0] == len(gradients):
        return gradients[0][None] if len(gradients) == 1 else torch.stack(gradients)
    total = torch.zeros_like(images)
    for gradient in gradients:
        total[0] += gradient
    return total


def channels_last(images: Tensor, architectures: int | torch.SymInt) -> Tensor:
    """An uninitialised tensor of the images' sizes, channels-last in memory."""
    _, n, c, height, width = images.shape
    return images.new_empty((architectures, n, height, width, c)).permute(0, 1, 4, 2, 3)
