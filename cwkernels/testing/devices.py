"""What tests run on: instruction sets of the CPU, CUDA, memory that shows what is not written."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch

Processor = Literal["cpu", "gpu"]
_processor: ContextVar[Processor] = ContextVar("processor", default="cpu")


def processor() -> Processor:
    """Whose kernels compute what is tested: the emulator runs those of a GPU."""
    return _processor.get()


@contextmanager
def on_gpu() -> Iterator[None]:
    """Says that what is computed inside comes from a GPU's kernels."""
    token = _processor.set("gpu")
    try:
        yield
    finally:
        _processor.reset(token)


def cpu_isas() -> tuple[str, ...]:
    """The instruction sets that this machine runs, of "baseline", "avx2", "avx512"."""
    return tuple(torch.ops.cwkernels.cpu_isas().split(","))


@contextmanager
def cpu_isa(name: str) -> Iterator[None]:
    """Runs the CPU kernels of one instruction set inside, in all threads."""
    before = torch.ops.cwkernels.cpu_isa()
    torch.ops.cwkernels.set_cpu_isa(name)
    try:
        yield
    finally:
        torch.ops.cwkernels.set_cpu_isa(before)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills each tensor that is allocated inside with NaN, so that what is not written shows.

    It is what `torch.use_deterministic_algorithms` does to uninitialised memory. The workspace that
    the kernels take from their pool reads as NaN, too.
    """
    torch.ops.cwkernels.poison_workspace(True)
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.ops.cwkernels.poison_workspace(False)


def why_no_cuda(operation: str | None) -> str | None:
    """Why a test of `operation` cannot run on CUDA, or None."""
    if operation is None:
        return "these tests run on the CPU only"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"cwkernels::{operation}", "CUDA"):
        return f"{operation} has no CUDA kernel in this build"
    return None if torch.cuda.is_available() else "this machine has no CUDA device"
