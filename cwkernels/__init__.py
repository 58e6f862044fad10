"""Conditional super-network weights for PyTorch.

The parts load when they are first used: ``import cwkernels as cw; cw.spaces.nb201("full")``.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwkernels import data, networks, nn, ops, optim, spaces
    from cwkernels.ops import backend, set_backend

__version__ = "0.1.0"

__all__ = [
    "backend",
    "data",
    "networks",
    "nn",
    "ops",
    "optim",
    "set_backend",
    "spaces",
]

_FROM_OPS = ("backend", "set_backend")


def __getattr__(name: str) -> ModuleType | Any:
    if name in _FROM_OPS:
        return getattr(importlib.import_module("cwkernels.ops"), name)
    if name in __all__:
        return importlib.import_module(f"cwkernels.{name}")
    raise AttributeError(f"module 'cwkernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
