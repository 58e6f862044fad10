"""A pytest plugin: what tests run on, each instruction set of this machine, CUDA, threads."""

from collections.abc import Iterator

import pytest
import torch

from cwkernels.testing.devices import (
    cpu_isa,
    cpu_isas,
    on_gpu,
    poisoned_memory,
    why_no_cuda,
)
from cwkernels.testing.emulated import emulated, why_not_emulated


@pytest.fixture(params=["cpu-baseline", "cpu-avx2", "cpu-avx512", "emulated", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Runs a test once per CPU instruction set, once on the emulator and once on CUDA.

    A module whose tests move their tensors to the device names the operation that must have a
    kernel there: ``OPERATION = "copy_rows"``. The others are skipped on CUDA and the emulator.
    """
    name: str = request.param
    if not name.startswith("cpu-"):
        yield from _gpu(request)
        return
    isa = name.removeprefix("cpu-")
    if isa not in cpu_isas():
        pytest.skip(f"this machine does not run {isa}")
    with cpu_isa(isa):
        yield torch.device("cpu")


@pytest.fixture(params=["emulated", "cuda"])
def gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """As `device`, for what only a GPU's kernels do: bfloat16."""
    yield from _gpu(request)


def _gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    operation = getattr(request.module, "OPERATION", None)
    if request.param == "emulated":
        reason = why_not_emulated(operation)
        if reason is not None:
            pytest.skip(reason)
        with emulated(), on_gpu():
            yield torch.device("cpu")
        return
    reason = why_no_cuda(operation)
    if reason is not None:
        pytest.skip(reason)
    # By default stock torch, which stands beside the kernels, convolves in TF32 there.
    with on_gpu(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield torch.device("cuda")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs a test on one thread, and on a number that divides nothing evenly."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Runs a test on one thread: small tensors cost more to share out than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fills what is allocated in a test with NaN."""
    with poisoned_memory():
        yield
