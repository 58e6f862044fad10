"""A choice of how operations run: a default of the process, another for a while by `with`."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

Choice = TypeVar("Choice", bound=str)


class Switch(Generic[Choice]):
    """One such choice; an operation reads it when it is called and passes it on.

    Args:
        argument: what errors call the choice.
        choices: all there are, the process's first default in front.
    """

    def __init__(self, argument: str, choices: tuple[Choice, ...]) -> None:
        self._argument = argument
        self._choices = choices
        self._default = choices[0]
        self._override: ContextVar[Choice | None] = ContextVar(
            f"cwkernels_{argument}", default=None
        )

    def _checked(self, operation: str, choice: Choice) -> Choice:
        if choice not in self._choices:
            wanted = " or ".join(map(repr, self._choices))
            raise ValueError(f"{operation}: {self._argument}: wanted {wanted}, got {choice!r}")
        return choice

    def set_default(self, operation: str, choice: Choice) -> None:
        """Sets the process's default; ValueError names the operation that asked for it."""
        self._default = self._checked(operation, choice)

    @contextmanager
    def use(self, operation: str, choice: Choice) -> Iterator[None]:
        """The choice within a `with` block, in this context."""
        token = self._override.set(self._checked(operation, choice))
        try:
            yield
        finally:
            self._override.reset(token)

    def current(self) -> Choice:
        """What an operation called now would run by."""
        return self._override.get() or self._default
