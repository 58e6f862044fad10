"""The kernels of a step as data: what each reads, writes and multiplies.

`Plan` collects them in their order, for one network, one architecture and one type of activations.
Weights are float32 in every type. Sums of batch norms, a few numbers a channel, are not counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

WEIGHT_BYTES = 4
ACTIVATION_BYTES = {"tf32": 4, "bf16": 2}
"""By the type in which matrix units multiply: tf32 has float32 activations."""


@dataclass(frozen=True)
class Value:
    """A tensor: a name of its own and its bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Launch:
    """One kernel.

    Attributes:
        name: what it does, and where.
        reads: each tensor once, however often a kernel of this plan comes back to it.
        writes: likewise.
        matrix: operations (two for a multiply-add) of matrix units.
        depthwise: operations of the other units.
        rides: whether the kernel before it has at hand what it reads: weight gradients beside those
            of data, sums of a batch norm in what writes the gradient.
    """

    name: str
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    matrix: int = 0
    depthwise: int = 0
    rides: bool = False

    @property
    def bytes(self) -> int:
        """Of all that it reads and writes."""
        return sum(value.bytes for value in (*self.reads, *self.writes))


@dataclass(frozen=True)
class Shape:
    """Images [N, C, H, W] that are square."""

    images: int
    channels: int
    size: int

    @property
    def elements(self) -> int:
        """Numbers."""
        return self.images * self.channels * self.size**2


@dataclass(frozen=True)
class Convolution:
    """A convolution with its input, output and weights.

    Attributes:
        name: of its layer.
        source: the shape that it reads.
        target: the shape that it makes.
        kernel_size: 1, 3 or 5.
        depthwise: each channel by itself.
    """

    name: str
    source: Shape
    target: Shape
    kernel_size: int
    depthwise: bool = False

    @property
    def weight(self) -> Value:
        """One row of its bank."""
        channels = 1 if self.depthwise else self.source.channels
        count = channels * self.target.channels * self.kernel_size**2
        return Value(f"{self.name} weight", WEIGHT_BYTES * count)

    @property
    def gradient(self) -> Value:
        """Of that row."""
        return Value(f"{self.name} weight gradient", self.weight.bytes)

    @property
    def operations(self) -> int:
        """In each of forward, data gradient and weight gradient."""
        channels = 1 if self.depthwise else self.source.channels
        return 2 * self.target.elements * channels * self.kernel_size**2


class Plan:
    """The launches of a step or a pass, in their order.

    Args:
        dtype: "tf32" or "bf16".
    """

    def __init__(self, dtype: str) -> None:
        self.element_bytes = ACTIVATION_BYTES[dtype]
        self.launches: list[Launch] = []
        self.weights: list[Value] = []

    def value(self, name: str, shape: Shape) -> Value:
        """A tensor of activations."""
        return Value(name, shape.elements * self.element_bytes)

    def launch(
        self,
        name: str,
        reads: Iterable[Value],
        writes: Iterable[Value],
        convolutions: Sequence[Convolution] = (),
    ) -> None:
        """One more kernel, which multiplies for these convolutions and reads their weights."""
        self.launches.append(
            Launch(
                name,
                tuple(dict.fromkeys((*reads, *(conv.weight for conv in convolutions)))),
                tuple(writes),
                sum(conv.operations for conv in convolutions if not conv.depthwise),
                sum(conv.operations for conv in convolutions if conv.depthwise),
            )
        )

    def also(self, reads: Iterable[Value]) -> None:
        """What the last kernel reads too, for sums in its epilogue."""
        last = self.launches[-1]
        self.launches[-1] = replace(last, reads=tuple(dict.fromkeys((*last.reads, *reads))))

    def weight_gradients(
        self, name: str, reads: Iterable[Value], convolutions: Sequence[Convolution]
    ) -> None:
        """One kernel for the gradients of these convolutions' weights."""
        self.launches.append(
            Launch(
                name,
                tuple(dict.fromkeys(reads)),
                tuple(conv.gradient for conv in convolutions),
                sum(conv.operations for conv in convolutions if not conv.depthwise),
                sum(conv.operations for conv in convolutions if conv.depthwise),
                rides=True,
            )
        )
        self.weights += [conv.weight for conv in convolutions]

    def sums(self, name: str, gradient: Value, raw: Value) -> None:
        """The two sums of a batch norm's backward pass."""
        self.launches.append(Launch(name, (gradient, raw), (), rides=True))

    def small(self, *names: str) -> None:
        """Kernels whose bytes do not count: they take the time of a launch."""
        for name in names:
            self.launch(name, (), ())

    def optimizer(self) -> None:
        """SGD with momentum over the rows that got a gradient, and the running statistics."""
        momenta = [replace(w, name=f"{w.name} momentum") for w in self.weights]
        gradients = [replace(w, name=f"{w.name} gradient") for w in self.weights]
        self.launch("sgd", (*self.weights, *momenta, *gradients), (*self.weights, *momenta))
        self.small("running statistics")
