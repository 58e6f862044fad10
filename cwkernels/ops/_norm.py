"""Batch normalisation as the composed operations use it, on statistics [2, C]: mean, variance."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Norm(NamedTuple):
    """What normalises one tensor [N, C, H, W]: statistics [2, C], and an affine map or none."""

    statistics: Tensor
    scale: Tensor | None
    shift: Tensor | None


class NormGradient(NamedTuple):
    """The gradient of a normalisation: of its input, and of scale and shift if there are any."""

    input: Tensor
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


def batch_statistics(input: Tensor) -> Tensor:
    """Mean and biased variance of each channel: [N, C, H, W] to [2, C], in the input's dtype."""
    if input.numel() == 0:
        return input.new_zeros((2, input.shape[1]))
    return torch.stack(torch.ops.aten.batch_norm_update_stats(input, None, None, 0.0))


def normalize(input: Tensor, norm: Norm, eps: float) -> Tensor:
    """(input - mean) / sqrt(variance + eps) * scale + shift."""
    mean, variance = norm.statistics
    return F.batch_norm(input, mean, variance, norm.scale, norm.shift, training=False, eps=eps)


def normalize_backward(
    grad: Tensor, input: Tensor, norm: Norm, training: bool, eps: float
) -> NormGradient:
    """The gradient of `normalize`; in training through the statistics too, as the input's own."""
    if input.numel() == 0:
        # torch's kernel divides by the number of values a channel.
        affine = (None if t is None else torch.zeros_like(t) for t in (norm.scale, norm.shift))
        return NormGradient(torch.empty_like(input), *affine)
    mean, variance = norm.statistics
    gradient = torch.ops.aten.native_batch_norm_backward(
        grad,
        input,
        norm.scale,
        mean,
        variance,
        mean,
        torch.rsqrt(variance + eps),
        training,
        eps,
        [True, norm.scale is not None, norm.scale is not None],
    )
    return NormGradient(*gradient)


def reference_normalize(input: Tensor, norm: Norm, training: bool, eps: float) -> Tensor:
    """`F.batch_norm`, which in training takes the batch's own statistics; differentiable."""
    if training:
        return F.batch_norm(input, None, None, norm.scale, norm.shift, training=True, eps=eps)
    mean, variance = norm.statistics
    return F.batch_norm(input, mean, variance, norm.scale, norm.shift, training=False, eps=eps)


def per_architecture(images: Tensor) -> Tensor:
    """Images [A, N, C, H, W] as they are, [N, C, H, W] as those of one architecture."""
    return images if images.dim() == 5 else images.unsqueeze(0)


def stack(tensors: list[Tensor]) -> Tensor:
    """`torch.stack`, without the copy where there is one architecture."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


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
    for name, tensor in (("statistics", statistics), ("scale", scale), ("shift", shift)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise ValueError(f"{operation}: {name}: wanted {input.dtype}, got {tensor.dtype}")
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


def sum_affine(
    gradients: list[NormGradient], scale: Tensor | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of scale and shift, summed over the architectures in order; empty if not affine."""
    size = 0 if scale is None else scale.shape[0]
    grad_scale, grad_shift = like.new_zeros(size), like.new_zeros(size)
    for gradient in gradients:
        if gradient.scale is not None and gradient.shift is not None:
            grad_scale += gradient.scale
            grad_shift += gradient.shift
    return grad_scale, grad_shift
