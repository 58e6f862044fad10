"""What tests and benchmarks share: cases as data, inputs, comparators with one tolerance table.

A result is right if small integers give it bit for bit, and if on random numbers its error against
the same computation in float64 is that of stock torch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cwkernels.ops import backend
from cwkernels.spaces.macro import CANDIDATES, HEAD, LAYERS, STEM, Convolution, convolutions


@dataclass(frozen=True)
class ConvCase:
    """One call of `cw.ops.gather_conv`: a row of the bank for each architecture."""

    name: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel_size: int
    stride: int = 1
    depthwise: bool = False
    images: int = 2
    sets: int = 1
    rows: tuple[int, ...] = (0,)
    shared: bool = True
    """Whether all architectures see the same images."""

    def __str__(self) -> str:
        """The name, for the ids of parametrised tests."""
        return self.name

    @property
    def groups(self) -> int:
        """`gather_conv`'s argument."""
        return self.in_channels if self.depthwise else 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[A or 1, N, C, H, W]."""
        lead = 1 if self.shared else len(self.rows)
        return (lead, self.images, self.in_channels, self.height, self.width)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[S, K, C / groups, R, R]."""
        taps = (self.kernel_size, self.kernel_size)
        return (self.sets, self.out_channels, self.in_channels // self.groups, *taps)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[A, N, K, H', W']."""
        size = ((side - 1) // self.stride + 1 for side in (self.height, self.width))
        return (len(self.rows), self.images, self.out_channels, *size)

    @property
    def terms(self) -> dict[str, int]:
        """How many products each element of the output and of the gradients sums, at most."""
        taps = self.kernel_size**2
        sharing = len(self.rows) if self.shared else 1
        repeats = max(map(self.rows.count, self.rows))
        _, images, _, height, width = self.output_shape
        return {
            "output": self.in_channels // self.groups * taps,
            "gradient of input": self.out_channels // self.groups * taps * sharing,
            "gradient of weight": images * height * width * repeats,
        }

    @property
    def nonzero(self) -> float:
        """The share of elements that must not be zero: small images leave outer taps unread."""
        fraction = LEAST_NONZERO
        for side in (self.height, self.width):
            pad, pixels = self.kernel_size // 2, range(0, side, self.stride)
            reached = sum(
                any(0 <= pixel + tap - pad < side for pixel in pixels)
                for tap in range(self.kernel_size)
            )
            fraction *= reached / self.kernel_size
        return fraction

    def tensors(self, draw: "Draw", seed: int = 0) -> dict[str, Tensor]:
        """Channels-last "input", "weight", "rows", and a "cotangent" of the output, drawn."""
        return {
            "input": channels_last(draw(*self.input_shape, seed=seed)),
            "weight": draw(*self.weight_shape, seed=seed + 1),
            "rows": torch.tensor(self.rows, dtype=torch.int64),
            "cotangent": channels_last(draw(*self.output_shape, seed=seed + 2)),
        }

    @property
    def reproduction(self) -> str:
        """The command that runs this case alone."""
        return f"pytest tests/ops/test_gather_conv.py -k '{self.name}'"


@contextmanager
def reproducible(case: ConvCase) -> Iterator[None]:
    """Adds to what is raised inside the command that repeats it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{case}\nto reproduce: {case.reproduction}")
        raise


def network_cases(images: int = 2) -> tuple[ConvCase, ...]:
    """The convolutions of both networks, each shape once."""
    cases = _nb201_cases(images) + _macro_cases(images)
    unique = {(case.weight_shape, case.input_shape, case.stride): case for case in reversed(cases)}
    return tuple(case for case in cases if case in unique.values())


def _nb201_cases(images: int) -> list[ConvCase]:
    cases = [ConvCase("nb201_stem", 3, 16, 32, 32, 3, images=images)]
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        for kernel_size in (3, 1):
            name = f"nb201_{kernel_size}x{kernel_size}_{channels}"
            cases.append(ConvCase(name, channels, channels, side, side, kernel_size, images=images))
    for channels, side in ((16, 32), (32, 16)):
        reduction = f"nb201_reduction_{channels}"
        shortcut = f"nb201_shortcut_{channels}"
        half = side // 2
        cases += [
            ConvCase(reduction, channels, 2 * channels, side, side, 3, stride=2, images=images),
            ConvCase(shortcut, channels, 2 * channels, half, half, 1, images=images),
        ]
    return cases


def _macro_cases(images: int) -> list[ConvCase]:
    cases = [_macro_case("macro_stem", STEM, STEM.output_size, images)]
    for i, layer in enumerate(LAYERS):
        for candidate in CANDIDATES:
            side = layer.input_size
            parts = convolutions(layer, candidate.code)
            names = ("expand", "depthwise", "project") if len(parts) == 3 else ("projection",)
            for part, convolution in zip(names, parts, strict=False):
                name = f"macro_{i}_{candidate.name}_{part}"
                cases.append(_macro_case(name, convolution, side, images))
                side = convolution.output_size
    cases.append(_macro_case("macro_head", HEAD, HEAD.output_size, images))
    return cases


def _macro_case(name: str, conv: Convolution, side: int, images: int) -> ConvCase:
    return ConvCase(
        name,
        conv.in_channels,
        conv.out_channels,
        side,
        side,
        conv.kernel_size,
        stride=side // conv.output_size,
        depthwise=conv.groups > 1,
        images=images,
    )


def channels_last(images: Tensor) -> Tensor:
    """The same images [..., C, H, W], channels-last in memory."""
    return images.movedim(-3, -1).contiguous().movedim(-1, -3)


class Draw(Protocol):
    """Draws a float32 tensor of a shape."""

    def __call__(self, *shape: int, seed: int) -> Tensor:
        """The tensor, contiguous."""


def small_integers(*shape: int, seed: int = 0) -> Tensor:
    """-2, -1, 1 or 2, float32: sums of products are exact in any order, and no factor is zero."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(1, 3, shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (magnitude * sign).float()


def dense_random(*shape: int, seed: int = 0, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """Normal numbers, float32. A mean far from zero is where E[x²] - E[x]² goes wrong."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * deviation + mean


def statistics_of(images: Tensor) -> Tensor:
    """Mean and biased variance of each channel: [..., N, C, H, W] to [..., 2, C]."""
    variance, mean = torch.var_mean(images.detach().double(), (-4, -2, -1), correction=0)
    return torch.stack([mean, variance], dim=-2).to(images.dtype)


class Tolerance(NamedTuple):
    """How far from the float64 reference a tensor may be: the larger of two bounds."""

    stock: float
    """Times stock torch's own error."""
    floor: float
    """Times the dtype's epsilon and the square root of the number of terms of a sum."""


TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(stock=2.0, floor=1.0),
    # The reference rounds as much as what is compared with it.
    torch.float64: Tolerance(stock=2.0, floor=4.0),
}
"""The one table of tolerances."""

LEAST_NONZERO = 0.1
"""A reference with a smaller share of elements that are not zero proves nothing."""


def relative_error(result: Tensor, reference: Tensor) -> float:
    """The norm of the difference over the norm of the reference, in float64."""
    reference = reference.double()
    return float((result.double() - reference).norm() / reference.norm())


def assert_close_to_reference(
    name: str,
    result: Tensor,
    reference: Tensor,
    stock: Tensor,
    *,
    terms: int,
    nonzero: float = LEAST_NONZERO,
) -> None:
    """Raises AssertionError unless `result` is as close to `reference` as the table asks.

    Args:
        name: of the tensor, for the message.
        result: what is tested.
        reference: the same, computed in float64 from the same inputs.
        stock: the same, computed by stock torch in `result`'s dtype.
        terms: how many products one element sums.
        nonzero: the share of the reference that must not be zero.
    """
    assert reference.dtype == torch.float64, f"{name}: the reference is {reference.dtype}"
    _assert_comparable(name, result, reference, nonzero)
    assert result.dtype == stock.dtype, f"{name}: {result.dtype}, stock's {stock.dtype}"
    tolerance = TOLERANCES[result.dtype]
    error, stock_error = relative_error(result, reference), relative_error(stock, reference)
    floor = tolerance.floor * torch.finfo(result.dtype).eps * terms**0.5
    bound = max(tolerance.stock * stock_error, floor)
    assert error <= bound, (
        f"{name}: relative error {error:.2e}, bound {bound:.2e} "
        f"(stock's error {stock_error:.2e}, floor for {terms} terms {floor:.2e})"
    )


def assert_bitwise(
    name: str, result: Tensor, expected: Tensor, *, nonzero: float = LEAST_NONZERO
) -> None:
    """Raises AssertionError unless both are the same, bit for bit (but for the sign of a zero)."""
    _assert_comparable(name, result, expected, nonzero)
    assert result.dtype == expected.dtype, f"{name}: {result.dtype}, wanted {expected.dtype}"
    different = (result != expected).nonzero()
    if len(different):
        place = tuple(different[0].tolist())
        raise AssertionError(
            f"{name}: {len(different)} of {expected.numel()} elements differ, the first at "
            f"{list(place)}: {result[place].item()!r}, wanted {expected[place].item()!r}"
        )


def _assert_comparable(name: str, result: Tensor, reference: Tensor, nonzero: float) -> None:
    got, wanted = list(result.shape), list(reference.shape)
    assert got == wanted, f"{name}: shape {got}, wanted {wanted}"
    assert torch.isfinite(reference).all(), f"{name}: the reference is not finite"
    share = int(reference.count_nonzero()) / max(reference.numel(), 1)
    assert share >= nonzero, f"{name}: the reference is zero but for {share:.1%} of its elements"
    bad = int((~torch.isfinite(result)).sum())
    assert bad == 0, f"{name}: {bad} of {result.numel()} elements are not finite"


def compact_rows(name: str, gradient: Tensor) -> tuple[list[int], Tensor]:
    """The rows of a bank's compact gradient, and their values [U, ...].

    Raises AssertionError unless it is a sparse tensor whose rows are sorted and unique.
    """
    assert gradient.is_sparse, f"{name}: a dense gradient, wanted a compact one"
    assert gradient.sparse_dim() == 1, f"{name}: {gradient.sparse_dim()} sparse dimensions"
    rows: list[int] = gradient._indices()[0].tolist()
    assert rows == sorted(set(rows)), f"{name}: rows {rows} are not sorted and unique"
    return rows, gradient._values()


Tensors = Mapping[str, Tensor]
Function = Callable[[Tensors], Tensors]


def evaluate(function: Function, inputs: Tensors, cotangents: Tensors) -> dict[str, Tensor | None]:
    """What `function` makes of `inputs`, and the gradient of each of them that is of floats.

    Args:
        function: named tensors to named tensors.
        inputs: its argument.
        cotangents: for each differentiable output that is differentiated, its gradient.

    Returns:
        The outputs by name and, as "gradient of NAME", the gradients; None where there is none.
    """
    leaves = {
        name: tensor.detach().requires_grad_(tensor.is_floating_point())
        for name, tensor in inputs.items()
    }
    outputs = function(leaves)
    torch.autograd.backward(
        [outputs[name] for name in cotangents],
        [cotangent.to(outputs[name].dtype) for name, cotangent in cotangents.items()],
    )
    results: dict[str, Tensor | None] = {name: out.detach() for name, out in outputs.items()}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            results[f"gradient of {name}"] = leaf.grad
    return results


def cast(tensors: Tensors, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same tensors, those of floats in `dtype`."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def as_reference(function: Function) -> Function:
    """The same function, run by the plain-torch references of the operations."""

    def run(tensors: Tensors) -> Tensors:
        with backend("reference"):
            return function(tensors)

    return run


def on_device(function: Function, device: torch.device) -> Function:
    """The same function, computed on `device`: tensors of floats go there, the results back."""

    def run(tensors: Tensors) -> Tensors:
        moved = {
            name: tensor.to(device) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        return {name: result.cpu() for name, result in function(moved).items()}

    return run


Results = Mapping[str, Tensor | None]


class Expected(NamedTuple):
    """What an oracle gives: in float64, and in float32 with stock torch's error."""

    reference: Results
    stock: Results


def expect(oracle: Function, inputs: Tensors, cotangents: Tensors) -> Expected:
    """`evaluate` for an oracle, with float32 `inputs` and with the same in float64."""
    doubles = cast(inputs, torch.float64)
    return Expected(evaluate(oracle, doubles, cotangents), evaluate(oracle, inputs, cotangents))


def assert_as_close(
    results: Results,
    expected: Expected,
    *,
    terms: Mapping[str, int],
    nonzero: Mapping[str, float] | None = None,
) -> None:
    """Raises AssertionError unless `results` are as close to the reference as stock torch's.

    Outputs and gradients are compared one by one. A compact gradient must hold exactly the rows in
    which the reference is not zero, and none must be where that is all zero.

    Args:
        results: from `evaluate`, for float32 inputs.
        expected: from `expect`; what the oracle gives is compared.
        terms: by name of the output or gradient, see `assert_close_to_reference`; "" for others.
        nonzero: by name, the share of the reference that must not be zero.
    """
    for name, reference in expected.reference.items():
        compared = _comparable(name, results[name], reference, expected.stock[name])
        if compared is not None:
            least = (nonzero or {}).get(name, LEAST_NONZERO)
            size = terms[name] if name in terms else terms[""]
            assert_close_to_reference(name, *compared, terms=size, nonzero=least)


def _comparable(
    name: str, result: Tensor | None, reference: Tensor | None, stock: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """All three dense, for the rows that a compact result holds; None where nothing flows."""
    if reference is None or stock is None or not reference.to_dense().any():
        assert result is None or not result.is_sparse, f"{name}: a gradient where none flows"
        assert result is None or not result.any(), f"{name}: not zero where nothing flows"
        return None
    assert result is not None, f"{name}: no gradient"
    reference, stock = reference.to_dense(), stock.to_dense()
    if not result.is_sparse:
        return result, reference, stock
    rows, values = compact_rows(name, result)
    wanted = reference.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    assert rows == wanted, f"{name}: rows {rows}, wanted {wanted}"
    return values, reference[rows], stock[rows]


@contextmanager
def refused(error: type[Exception], message: str) -> Iterator[None]:
    """Raises AssertionError unless exactly `error` is raised inside, with `message` in its text."""
    raised: Exception | None = None
    try:
        yield
    except Exception as caught:
        raised = caught
    assert type(raised) is error, f"{raised!r}, wanted {error.__name__}: {message}"
    assert message in str(raised), f"{str(raised)!r}, wanted {message!r}"


def cpu_isas() -> tuple[str, ...]:
    """The instruction sets that this machine runs, of "baseline", "avx2", "avx512"."""
    return tuple(torch.ops.cwkernels.cpu_isas().split(","))


@contextmanager
def cpu_isa(name: str) -> Iterator[None]:
    """Runs the CPU kernels of one instruction set inside, in all threads."""
    before = torch.ops.cwkernels.cpu_isa()
    torch.ops.cwkernels.set_cpu_isa(name)
    try:
        yield
    finally:
        torch.ops.cwkernels.set_cpu_isa(before)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills each tensor that is allocated inside with NaN, so that what is not written shows.

    It is what `torch.use_deterministic_algorithms` does to uninitialised memory; workspaces of
    bytes read as NaN too.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
