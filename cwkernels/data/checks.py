"""One-line errors for wrong arguments."""

import torch
from torch import Tensor


def require(condition: bool, operation: str, argument: str, wanted: str, got: object) -> None:
    """Raises ``ValueError("operation: argument: wanted …, got …")`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{operation}: {argument}: wanted {wanted}, got {describe(got)}")


def require_images(operation: str, argument: str, images: Tensor) -> None:
    """Requires uint8 images ``[N, 3, H, W]``."""
    ok = images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] == 3
    require(ok, operation, argument, "uint8 [N, 3, H, W]", images)


def require_vector(
    operation: str, argument: str, vector: Tensor, dtype: torch.dtype, like: Tensor, length: int
) -> None:
    """Requires a vector of one type and length, on the device of ``like``."""
    ok = vector.dtype == dtype and vector.shape == (length,) and vector.device == like.device
    wanted = f"{_name(dtype)} [{length}] on {like.device}"
    require(ok, operation, argument, wanted, vector)


def describe(value: object) -> str:
    """Type, shape and device of a tensor; anything else as it prints."""
    if isinstance(value, Tensor):
        return f"{_name(value.dtype)} {list(value.shape)} on {value.device}"
    return str(value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
