"""The memory that the CPU operations keep: a pool for scratch, an arena for large tensors."""

import torch

from cwkernels.ops import _library  # noqa: F401  the operations are there once it is imported


def workspace_bytes() -> int:
    """How much memory CPU operations hold beyond the tensors that are alive, in bytes.

    It is kept so that later calls do not pay page faults: scratch, a piece for each call that ran
    at a time, of the size of the largest; and what earlier large tensors of the operations have
    left, outputs and what was saved for backward (with torch 2.11 or later; before that it is
    torch's allocator that such tensors come from). PyTorch's own memory statistics see neither.
    """
    size: int = torch.ops.cwkernels.workspace_bytes()
    return size


def release_workspace() -> None:
    """Gives what no call and no tensor uses back to the system; the next call takes it anew."""
    torch.ops.cwkernels.release_workspace()
