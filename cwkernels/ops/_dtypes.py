"""How activations are stored, and what stands beside them."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor


def parameter_dtype(activations: torch.dtype) -> torch.dtype:
    """Of weights, scales, shifts, statistics and their gradients: float32 beside bfloat16."""
    return torch.float32 if activations == torch.bfloat16 else activations


def autocast(operation: str, images: Tensor) -> Tensor:
    """The images as a stock convolution would take them: inside `torch.autocast` in bfloat16.

    Weights keep their dtype, and so do images in float64, as stock's do.

    Raises:
        ValueError: inside an autocast to another dtype.
    """
    if images.dtype != torch.float32 or not _in_autocast(images):
        return images
    dtype = torch.get_autocast_dtype(images.device.type)
    if dtype != torch.bfloat16:
        raise ValueError(f"{operation}: autocast: wanted torch.bfloat16, got {dtype}")
    return images.to(dtype)


def run_reference(reference: Callable[..., Any], images: Tensor, *arguments: Any) -> Any:
    """What a reference gives for images of any dtype: bfloat16 is widened for it.

    Its output, which is all that it returns or the first of it, is rounded as the images are. It
    runs outside of autocast, in which stock convolutions round weights and measure what is rounded.
    """
    device = images.device.type
    outside = torch.autocast(device, enabled=False) if _in_autocast(images) else nullcontext()
    with outside:
        results = reference(images.to(parameter_dtype(images.dtype)), *arguments)
    if isinstance(results, Tensor):
        return results.to(images.dtype)
    output, *measured = results
    return output.to(images.dtype), *measured


def _in_autocast(images: Tensor) -> bool:
    return not images.is_meta and torch.is_autocast_enabled(images.device.type)
