"""The spaces by name, as records have them."""

from collections.abc import Callable

from cwkernels.spaces import checks
from cwkernels.spaces.macro import macro
from cwkernels.spaces.nb201 import nb201
from cwkernels.spaces.space import Space

_SPACES: dict[str, Callable[[], Space]] = {
    "macro": macro,
    "nb201_full": lambda: nb201("full"),
    "nb201_no_zero": lambda: nb201("no_zero"),
    "nb201_only_conv": lambda: nb201("only_conv"),
}


def named(name: str) -> Space:
    """The space whose ``name`` that is; ValueError for another."""
    if name not in _SPACES:
        wanted = f"one of {', '.join(_SPACES)}"
        raise ValueError(checks.message("spaces.named", "name", wanted, repr(name)))
    return _SPACES[name]()
