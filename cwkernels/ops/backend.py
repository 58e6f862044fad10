"""Which implementation the operations run: our kernels, or the plain-torch references."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

Backend = Literal["kernels", "reference"]

_default: Backend = "kernels"
_override: ContextVar[Backend | None] = ContextVar("cwkernels_backend", default=None)


def _checked(operation: str, name: str) -> Backend:
    if name not in get_args(Backend):
        wanted = " or ".join(repr(choice) for choice in get_args(Backend))
        raise ValueError(f"{operation}: name: wanted {wanted}, got {name!r}")
    return name  # type: ignore[return-value]


def set_backend(name: Backend) -> None:
    """Sets the process's default backend, "kernels" or "reference".

    Raises:
        ValueError: for any other name.
    """
    global _default
    _default = _checked("set_backend", name)


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Uses a backend within a `with` block: ``with cw.backend("reference"): ...``.

    "reference" runs each operation as the plain torch code that it is equivalent to, with the same
    results within the tolerance table. An operation reads the backend when it is called, and its
    backward pass keeps to it, in whatever thread it runs.

    Raises:
        ValueError: for any other name.
    """
    token = _override.set(_checked("backend", name))
    try:
        yield
    finally:
        _override.reset(token)


def current_backend() -> Backend:
    """The backend that an operation called now would run."""
    return _override.get() or _default
