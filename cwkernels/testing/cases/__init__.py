"""Calls of the operations as data: one module, and in it one list, per operation."""

from importlib import import_module
from pkgutil import iter_modules

from cwkernels.testing.cases.call import Call

# `call` is no operation; gather_conv's list is longer and measured by direction.
_OTHERS = ("call", "gather_conv")


def network_calls(images: int = 2) -> tuple[Call, ...]:
    """What the networks call, but for `gather_conv`: the lists of all modules of this package."""
    names = [module.name for module in iter_modules(__path__) if module.name not in _OTHERS]
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return tuple(call for module in modules for call in module.network_calls(images))
