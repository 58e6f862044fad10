"""The CUDA kernels on the host: tests/emulator runs their sources, for tensors of the CPU."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).parents[2] / "build" / "cmake" / "emulator" / "_emulated.so"
"""Where `make emulated` puts the library; CWKERNELS_EMULATED_LIBRARY names another one."""
NAMESPACE = "cwkernels_emulated"
_running: ContextVar[bool] = ContextVar("emulated", default=False)


@dataclass(frozen=True)
class EmulatedDevice:
    """What runs the kernels, and in which order."""

    capability: int = 90
    """80, 86, 89, 90, 120: its limits, and from 90 on whether launches overlap."""
    processors: int = 3
    seed: int = 1
    """Of the order of blocks, warps and threads; 0 is one after another."""


def chosen_device() -> EmulatedDevice:
    """The device that CWKERNELS_EMULATOR names, "capability:processors:seed"; else the default."""
    named = os.environ.get("CWKERNELS_EMULATOR")
    return EmulatedDevice(*map(int, named.split(":"))) if named else EmulatedDevice()


def why_not_emulated(operation: str | None) -> str | None:
    """Why a test of `operation` cannot run on the emulator, or None."""
    if operation is None:
        return "these tests run on the CPU only"
    if not _path().exists():
        return f"there is no {_path()}: `make emulated` builds it"
    if operation not in emulated_operations():
        return f"{operation} has no CUDA kernel in {_path()}"
    return None


def emulated_operations() -> frozenset[str]:
    """The operations of the library that have a CUDA kernel."""
    _load()
    prefix = f"{NAMESPACE}::"
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    return frozenset(
        name.removeprefix(prefix)
        for name in names
        if name.startswith(prefix) and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    )


@contextmanager
def emulated(device: EmulatedDevice | None = None) -> Iterator[None]:
    """Runs the CUDA kernels inside, of each operation that has one, for tensors of the CPU."""
    library = _load()
    device = device or chosen_device()
    library.cwk_emulator_configure(device.capability, device.processors, device.seed)
    redirection = torch.library.Library("cwkernels", "IMPL")
    token = _running.set(True)
    try:
        for name in emulated_operations():
            redirection.impl(name, _redirected(name), "CPU", allow_override=True)
        yield
    finally:
        _running.reset(token)
        redirection._destroy()


def is_emulated() -> bool:
    """Whether this runs inside `emulated()`."""
    return _running.get()


def emulated_launches() -> int:
    """The kernels launched since `emulated()` was entered."""
    return int(_load().cwk_emulator_launches())


def _path() -> Path:
    return Path(os.environ.get("CWKERNELS_EMULATED_LIBRARY", LIBRARY))


@cache
def _load() -> ctypes.CDLL:
    torch.ops.load_library(str(_path()))
    library = ctypes.CDLL(str(_path()))
    library.cwk_emulator_configure.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64]
    library.cwk_emulator_configure.restype = None
    library.cwk_emulator_launches.restype = ctypes.c_int64
    return library


def _redirected(name: str) -> Callable[..., Any]:
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default

    def call(*arguments: Any) -> Any:
        return overload(*arguments)

    return call
