"""Conditional super-network weights for PyTorch.

The parts load when they are first used: ``import cwkernels as cw; cw.spaces.nb201("full")``.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cwkernels._version import __version__  # noqa: F401

if TYPE_CHECKING:
    from cwkernels import (
        data,
        groundtruth,
        networks,
        nn,
        ops,
        optim,
        ranking,
        spaces,
        training,
    )
    from cwkernels.about import build_info
    from cwkernels.ops import (
        backend,
        float32_conv_precision,
        release_workspace,
        set_backend,
        set_float32_conv_precision,
        synchronize,
        workspace_bytes,
    )

__all__ = [
    "backend",
    "build_info",
    "data",
    "float32_conv_precision",
    "groundtruth",
    "networks",
    "nn",
    "ops",
    "optim",
    "ranking",
    "release_workspace",
    "set_backend",
    "set_float32_conv_precision",
    "spaces",
    "synchronize",
    "training",
    "workspace_bytes",
]

_HOMES = {
    "backend": "ops",
    "build_info": "about",
    "float32_conv_precision": "ops",
    "release_workspace": "ops",
    "set_backend": "ops",
    "set_float32_conv_precision": "ops",
    "synchronize": "ops",
    "workspace_bytes": "ops",
}
"""Where the names that are no parts come from."""


def __getattr__(name: str) -> ModuleType | Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"cwkernels.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"cwkernels.{name}")
    raise AttributeError(f"module 'cwkernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
