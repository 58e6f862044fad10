"""How activations are stored, and what stands beside them."""

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
    device = images.device.type
    if images.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return images
    dtype = torch.get_autocast_dtype(device)
    if dtype != torch.bfloat16:
        raise ValueError(f"{operation}: autocast: wanted torch.bfloat16, got {dtype}")
    return images.to(dtype)
