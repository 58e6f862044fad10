"""One call of an operation at a network's shape, for tests and benchmarks alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from cwkernels.testing.functions import Function


@dataclass(frozen=True)
class Call:
    """A call, its oracle in stock torch, and what both are called with.

    Attributes:
        operation: the name in `cw.ops`.
        shape: where in a network, with the number of channels.
        run: the operation.
        stock: the same in stock torch; outputs that it does not give are not compared.
        inputs: makes the inputs by name, as float32.
        cotangents: makes the gradients of the outputs by name; none if there is no backward pass.
        terms: of `assert_as_close`.
        convolutions: of `assert_as_close`, for those that may run by Winograd; 0 if none may.
    """

    operation: str
    shape: str
    run: Function
    stock: Function
    inputs: Callable[[], dict[str, Tensor]]
    cotangents: Callable[[], dict[str, Tensor]]
    terms: Mapping[str, int]
    convolutions: int = 0

    def __str__(self) -> str:
        """For the ids of parametrised tests."""
        return f"{self.operation}-{self.shape}"
