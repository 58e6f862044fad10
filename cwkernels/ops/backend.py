"""Which implementation the operations run: our kernels, or the plain-torch references."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from cwkernels.ops._switch import Switch

Backend = Literal["kernels", "reference"]

_backend: Switch[Backend] = Switch("name", get_args(Backend))


def set_backend(name: Backend) -> None:
    """Sets the process's default backend, "kernels" or "reference".

    Raises:
        ValueError: for any other name.
    """
    _backend.set_default("set_backend", name)


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Uses a backend within a `with` block: ``with cw.backend("reference"): ...``.

    "reference" runs each operation as the plain torch code that it is equivalent to, with the same
    results within the tolerance table. An operation reads the backend when it is called, and its
    backward pass keeps to it, in whatever thread it runs.

    Raises:
        ValueError: for any other name.
    """
    with _backend.use("backend", name):
        yield


def current_backend() -> Backend:
    """The backend that an operation called now would run."""
    return _backend.current()
