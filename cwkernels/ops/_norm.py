"""Batch normalisation as the references use it, on statistics [2, C]: mean, variance."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels.ops._dtypes import parameter_dtype


class Norm(NamedTuple):
    """What normalises one tensor [N, C, H, W]: statistics [2, C], and an affine map or none."""

    statistics: Tensor
    scale: Tensor | None
    shift: Tensor | None


def check_batch(operation: str, shape: torch.Size, stride: int = 1) -> None:
    """Raises if the batch statistics of images `shape` [..., N, C, H, W] have one value a channel.

    Equivalent to `torch.nn.BatchNorm2d`'s own check in training.
    """
    n, _, height, width = shape[-4:]
    values = n * ((height - 1) // stride + 1) * ((width - 1) // stride + 1)
    if values == 1:
        raise ValueError(
            f"{operation}: input: wanted more than one value per channel in training, "
            f"got {list(shape)}"
        )


def reference_normalize(input: Tensor, norm: Norm, training: bool, eps: float) -> Tensor:
    """`F.batch_norm`, which in training takes the batch's own statistics; differentiable."""
    if training:
        return F.batch_norm(input, None, None, norm.scale, norm.shift, training=True, eps=eps)
    mean, variance = norm.statistics
    return F.batch_norm(input, mean, variance, norm.scale, norm.shift, training=False, eps=eps)


def per_architecture(images: Tensor) -> Tensor:
    """Images [A, N, C, H, W] as they are, [N, C, H, W] as those of one architecture."""
    return images if images.dim() == 5 else images.unsqueeze(0)


def check_norm(
    operation: str,
    input: Tensor,
    statistics: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    training: bool,
) -> None:
    """Raises ValueError unless the statistics and the affine map fit images [..., N, C, H, W]."""
    if input.dim() not in (4, 5):
        wanted = "[N, C, H, W] or [A, N, C, H, W]"
        raise ValueError(f"{operation}: input: wanted {wanted}, got {list(input.shape)}")
    if input.shape[0] == 0 and input.dim() == 5:
        wanted = "at least one architecture"
        raise ValueError(f"{operation}: input: wanted {wanted}, got {list(input.shape)}")
    channels = input.shape[-3]
    shape = (*input.shape[:-4], 2, channels)
    if statistics is not None and statistics.shape != shape:
        got = list(statistics.shape)
        raise ValueError(f"{operation}: statistics: wanted {list(shape)}, got {got}")
    if (scale is None) != (shift is None):
        raise ValueError(f"{operation}: shift: wanted scale and shift both or neither, got one")
    if scale is not None and statistics is None:
        raise ValueError(f"{operation}: statistics: wanted a tensor beside scale, got None")
    dtype = parameter_dtype(input.dtype)
    for name, tensor in (("statistics", statistics), ("scale", scale), ("shift", shift)):
        if tensor is not None and tensor.dtype != dtype:
            raise ValueError(f"{operation}: {name}: wanted {dtype}, got {tensor.dtype}")
    for name, affine in (("scale", scale), ("shift", shift)):
        if affine is not None and affine.shape != (channels,):
            raise ValueError(f"{operation}: {name}: wanted [{channels}], got {list(affine.shape)}")
    if training and statistics is not None:
        check_batch(operation, input.shape)


def norms(
    images: Tensor, statistics: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> list[Norm | None]:
    """How each architecture of `images` [A, N, C, H, W] is normalised."""
    if statistics is None:
        return [None] * images.shape[0]
    return [Norm(own, scale, shift) for own in statistics.reshape(-1, *statistics.shape[-2:])]
