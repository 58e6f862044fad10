"""inverted_bottleneck with activations in bfloat16: beside float64, and bit for bit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.testing import (
    Function,
    Results,
    Tensors,
    assert_as_close,
    assert_bitwise,
    cast,
    compact_rows,
    evaluate,
    expect,
    on_device,
    refused,
    small_integers,
    stored_as_bf16,
)
from cwkernels.testing.cases.inverted_bottleneck import (
    IDENTITY,
    K3_E3,
    K5_E6,
    Layer,
    call,
    chain,
    cotangents,
    run,
    stock,
)
from cwkernels.testing.emulated import emulated, why_not_emulated

OPERATION = "inverted_bottleneck"
pytestmark = pytest.mark.usefixtures("poisoned")

# By matrix units, parts of tiles; the others by the kernels for every shape.
LAYERS = {
    "residual": Layer(),
    "strided_recompute": Layer(5, 6, stride=2, recompute=True),
    "evaluation": Layer(training=False),
    "multiples_of_16": Layer(16, 16, images=2, height=9, width=17),
    "multiples_of_16_strided": Layer(32, 16, stride=2, images=3, height=8, width=7),
    "multiples_of_16_evaluation": Layer(16, 32, images=5, height=4, width=4, training=False),
    "multiples_of_16_recompute": Layer(16, 16, images=2, height=5, width=18, recompute=True),
}
FOUR = torch.tensor([[K5_E6, 2], [K3_E3, 0], [IDENTITY, 2], [K5_E6, 2]])


def drawn(layer: Layer, architectures: int | None = None) -> dict[str, Tensor]:
    """The inputs, images rounded to bfloat16."""
    return stored_as_bf16(layer.inputs(architectures=architectures), "input")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_is_as_close_as_stock(layer: Layer, shared: bool, gpu: torch.device) -> None:
    inputs = drawn(layer, None if shared else len(FOUR))
    gradient = stored_as_bf16(cotangents(layer, FOUR), "output")
    results = evaluate(on_device(run(layer, FOUR), gpu), inputs, gradient)
    output, weight = results["output"], results["gradient of weights[0]"]
    assert output is not None
    assert weight is not None
    assert (output.dtype, weight.dtype) == (torch.bfloat16, torch.float32)
    expected = expect(stock(layer, FOUR), inputs, gradient)
    # As in test_both_precisions of the float kernels.
    assert_as_close(results, expected, terms={"": 1}, precision="bf16", convolutions=4, flips=4)


class _Rounded(torch.autograd.Function):
    """What lies in memory as bfloat16: a value on its way forward, its gradient on its way back."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return value.bfloat16().to(value.dtype)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return grad.bfloat16().to(grad.dtype)


def rounded_where_stored(layer: Layer, code: int, row: int) -> Function:
    """The layer in evaluation, in the tensors' dtype but for the roundings of what is stored."""

    def function(tensors: Tensors) -> Tensors:
        value, banks = tensors["input"], layer.banks(tensors)
        images, (mean, variance) = value, layer.running(value.dtype)
        for place, bank in enumerate(chain(code, layer)):
            weight, scale, shift = (group[bank][row] for group in banks)
            depthwise = code != IDENTITY and place == 1
            stride = layer.stride if depthwise or code == IDENTITY else 1
            groups = weight.shape[0] if depthwise else 1
            raw = F.conv2d(value, weight, None, stride, weight.shape[-1] // 2, groups=groups)
            hidden = code != IDENTITY and place < 2
            # The last convolution's result is finished before it is stored. Gradients are stored
            # before the batch norm scales them, here by 1, and summed before they are stored.
            raw = _Rounded.apply(raw) if hidden else raw
            moments = mean[bank][row], variance[bank][row]
            value = F.batch_norm(raw, *moments, scale, shift, training=False, eps=layer.eps)
            value = F.relu(value) if hidden else value
        return {"output": value + images if layer.keeps_shape and code != IDENTITY else value * 1}

    return function


class Exact(Layer):
    """A layer of small integers whose batch norms add and subtract integers."""

    def inputs(self, *_: object) -> dict[str, Tensor]:
        """Scales are 2, which the standard deviation of 2 takes back."""
        return {
            name: torch.full_like(tensor, 2.0) if name.startswith("scales") else tensor.round()
            for name, tensor in super().inputs(small_integers).items()
        }

    def running(self, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
        """Whole means; variances of 3, to which `eps` adds 1."""
        mean, var = super().running(dtype)
        return [m.round() for m in mean], [torch.full_like(v, 3.0) for v in var]


def assert_equal(results: Results, exact: Results, names: Sequence[str]) -> None:
    """Raises AssertionError unless these results are the exact ones, rounded to their dtypes."""
    for name in names:
        result, expected = results[name], exact[name]
        if expected is None or not expected.any():
            assert result is None, name
            continue
        assert result is not None, name
        if result.is_sparse:
            rows, result = compact_rows(name, result)
            expected = expected[rows]
        assert_bitwise(name, result, expected.to(result.dtype))


@pytest.mark.parametrize("code", [IDENTITY, K3_E3, K5_E6])
@pytest.mark.parametrize("channels", [(5, 6), (16, 16), (16, 32)], ids=["5", "16", "32"])
def test_small_integers_are_rounded_where_they_are_stored(
    channels: tuple[int, int], code: int, gpu: torch.device
) -> None:
    # All sums are exact. The depthwise convolution's reach hundreds, and are rounded, many of them
    # from halfway between two neighbours.
    stride = 1 if channels == (16, 16) else 2
    layer = Exact(*channels, stride, training=False, eps=1.0, images=2, height=6, width=5)
    if code == IDENTITY and layer.keeps_shape:
        pytest.skip("a copy")
    selection = torch.tensor([code, 1])
    inputs = layer.inputs()
    gradient = cotangents(layer, selection, small_integers)
    exact = evaluate(rounded_where_stored(layer, code, 1), cast(inputs, torch.float64), gradient)
    stored, given = stored_as_bf16(inputs, "input"), stored_as_bf16(gradient, "output")
    results = evaluate(on_device(run(layer, selection), gpu), stored, given)
    # The last scale's gradient is made of what was kept, which is rounded before it is finished.
    last = f"gradient of scales[{chain(code, layer)[-1]}]"
    assert_equal(results, exact, [name for name in exact if name != last])


@pytest.mark.parametrize("name", ["residual", "multiples_of_16_strided"])
def test_recompute_changes_no_bit(name: str, gpu: torch.device) -> None:
    layer = LAYERS[name]
    inputs, gradient = drawn(layer), cotangents(layer, FOUR)
    results = [
        evaluate(on_device(run(replace(layer, recompute=again), FOUR), gpu), inputs, gradient)
        for again in (False, True)
    ]
    for name, expected in results[0].items():
        result = results[1][name]
        assert result is not None
        assert expected is not None
        assert_bitwise(name, result.to_dense(), expected.to_dense(), nonzero=0.01)


def test_inside_autocast(gpu: torch.device) -> None:
    # Images in float32 are rounded, and their gradient comes back in float32.
    layer, selection = LAYERS["multiples_of_16_strided"], FOUR[:2]
    gradient = cotangents(layer, selection)
    expected = evaluate(on_device(run(layer, selection), gpu), drawn(layer), gradient)
    with torch.autocast(gpu.type, torch.bfloat16):
        results = evaluate(on_device(run(layer, selection), gpu), layer.inputs(), gradient)
    for name in ("output", "gradient of input", "gradient of weights[1]"):
        result, wanted = results[name], expected[name]
        assert result is not None
        assert wanted is not None
        dtype = torch.float32 if name == "gradient of input" else wanted.dtype
        assert_bitwise(name, result.to_dense(), wanted.to_dense().to(dtype))
    message = "inverted_bottleneck: autocast: wanted torch.bfloat16, got torch.float16"
    with torch.autocast(gpu.type, torch.float16), refused(ValueError, message):
        on_device(run(layer, selection), gpu)(layer.inputs())


def test_opcheck() -> None:
    reason = why_not_emulated(OPERATION)
    if reason is not None:
        pytest.skip(reason)
    layer = Layer(2, 2, stride=2, images=2, height=3, width=4)
    tensors = {name: tensor.requires_grad_() for name, tensor in drawn(layer).items()}
    arguments = (tensors["input"][None], FOUR[:1], *layer.banks(tensors), *layer.running())
    with emulated():
        torch.library.opcheck(
            torch.ops.cwkernels.inverted_bottleneck.default,
            (*arguments, 2, True, 1e-5, False, True, True, True),
        )


def test_the_reference_computes_in_float32() -> None:
    layer = LAYERS["residual"]
    with ops.backend("reference"):
        results = run(layer, FOUR)(drawn(layer))
        expected = run(layer, FOUR)(cast(drawn(layer), torch.float32))
    for name, wanted in expected.items():
        assert_bitwise(name, results[name], wanted.bfloat16() if name == "output" else wanted)


def test_the_cpus_kernels_refuse_it() -> None:
    layer = LAYERS["residual"]
    message = (
        "inverted_bottleneck: input: wanted float32 or float64 on the CPU, "
        "got bfloat16, whose kernels need a GPU"
    )
    with refused(RuntimeError, message):
        call(layer, FOUR, drawn(layer))
    message = "inverted_bottleneck: weights[0]: wanted torch.float32 [S, K, C / groups, R, R], got"
    with refused(ValueError, message):
        call(layer, FOUR, cast(drawn(layer), torch.bfloat16))
