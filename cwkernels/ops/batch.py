"""batch: from uint8 images that stay on the device to a network's input."""

import torch
from torch import Tensor

from cwkernels.ops._library import register_fake
from cwkernels.ops.backend import current_backend


def batch(
    images: Tensor,
    indices: Tensor,
    shifts: Tensor | None = None,
    flips: Tensor | None = None,
    *,
    mean: Tensor,
    deviation: Tensor,
) -> Tensor:
    """Takes images by index, mirrors, shifts and normalises them, in one call.

    Equivalent to::

        chosen = images[indices]
        chosen[flips] = chosen[flips].flip(-1)
        # Each image's content moved down and right, zeros where it came from.
        moved = torch.stack([shift(image, down, right) for image, (down, right) in ...])
        return (moved.float() - mean[:, None, None]) / deviation[:, None, None]

    bit for bit. Nothing is recorded for autograd.

    Args:
        images: uint8 [M, C, H, W], all images. A copy is made of those that are not contiguous.
        indices: int64 [N], each in [0, M), in any order, repeats allowed.
        shifts: int64 [N, 2], by how many pixels an image's content moves down and right (negative:
            up, left), after it was mirrored; None for not at all.
        flips: bool [N], whether an image is mirrored left to right; None for none.
        mean, deviation: float32 [C], in units of the images: 0 to 255.

    Returns:
        float32 [N, C, H, W], channels-last in memory.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
        RuntimeError: if an index on the CPU is out of range. Nothing waits for one on a GPU: there
            it makes an image of NaN.
    """
    _check(images, indices, shifts, flips, mean, deviation)
    operation = reference if current_backend() == "reference" else torch.ops.cwkernels.batch
    with torch.no_grad():
        output: Tensor = operation(images, indices, shifts, flips, mean, deviation)
    return output


def _check(
    images: Tensor,
    indices: Tensor,
    shifts: Tensor | None,
    flips: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise _fail("images", "torch.uint8 [M, C, H, W]", images)
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise _fail("indices", "torch.int64 [N]", indices)
    count, channels = indices.shape[0], images.shape[1]
    for name, tensor, dtype, shape in (
        ("shifts", shifts, torch.int64, (count, 2)),
        ("flips", flips, torch.bool, (count,)),
        ("mean", mean, torch.float32, (channels,)),
        ("deviation", deviation, torch.float32, (channels,)),
    ):
        if tensor is not None and (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise _fail(name, f"{dtype} {list(shape)}", tensor)
    for name, tensor in (
        ("indices", indices),
        ("shifts", shifts),
        ("flips", flips),
        ("mean", mean),
        ("deviation", deviation),
    ):
        if tensor is not None and tensor.device != images.device:
            wanted = f"a tensor on {images.device}, as images"
            raise ValueError(f"batch: {name}: wanted {wanted}, got one on {tensor.device}")


def _fail(name: str, wanted: str, got: Tensor) -> ValueError:
    return ValueError(f"batch: {name}: wanted {wanted}, got {got.dtype} {list(got.shape)}")


def reference(
    images: Tensor,
    indices: Tensor,
    shifts: Tensor | None,
    flips: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
) -> Tensor:
    """The same in plain torch."""
    if indices.is_cpu and not torch.compiler.is_compiling():
        _check_range(indices.tolist(), images.shape[0])
    moved = _moved(images.index_select(0, indices), shifts, flips)
    # Last, because a CPU converts uint8 fast only into the layout that it has.
    values = moved.float().sub_(mean[:, None, None]).div_(deviation[:, None, None])
    return values.contiguous(memory_format=torch.channels_last)


def _check_range(indices: list[int], stored: int) -> None:
    for n, index in enumerate(indices):
        if not 0 <= index < stored:
            wanted = f"an image in [0, {stored})"
            raise RuntimeError(f"batch: indices[{n}]: wanted {wanted}, got {index}")


def _moved(images: Tensor, shifts: Tensor | None, flips: Tensor | None) -> Tensor:
    """Mirrors and shifts by one gather: each output pixel looks up where it comes from."""
    if shifts is None and flips is None:
        return images
    count, channels, height, width = images.shape
    row = torch.arange(height, device=images.device).expand(count, height)
    column = torch.arange(width, device=images.device).expand(count, width)
    if shifts is not None:
        limits = torch.tensor([height, width], device=images.device)
        down, right = shifts.minimum(limits).maximum(-limits).unbind(1)
        row, column = row - down[:, None], column - right[:, None]
    inside_rows = (row >= 0) & (row < height)
    inside = inside_rows[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    if flips is not None:
        column = torch.where(flips[:, None], width - 1 - column, column)
    row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    source = (row[:, :, None] * width + column[:, None, :]).flatten(1)
    moved = images.flatten(2).gather(2, source[:, None].expand(-1, channels, -1))
    return moved.view(images.shape) * inside[:, None]


@register_fake("batch")
def _(
    images: Tensor,
    indices: Tensor,
    shifts: Tensor | None,
    flips: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
) -> Tensor:
    _, channels, height, width = images.shape
    shape = (indices.shape[0], height, width, channels)
    return mean.new_empty(shape).permute(0, 3, 1, 2)
