"""The scratch memory of the CPU kernels, a pool that the process keeps."""

import torch

from cwkernels.ops import _library  # noqa: F401  the operations are there once it is imported


def workspace_bytes() -> int:
    """How much memory the scratch of CPU kernels holds, in use or idle.

    It is a piece for each call that ran at a time, of the size of the largest, kept so that later
    calls do not pay page faults. PyTorch's own memory statistics do not see it.
    """
    size: int = torch.ops.cwkernels.workspace_bytes()
    return size


def release_workspace() -> None:
    """Gives idle scratch memory back to the allocator; the next call allocates it anew."""
    torch.ops.cwkernels.release_workspace()
