"""gather_conv against stock convolutions: values and gradients for every shape and layout."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.testing import (
    LEAST_NONZERO,
    ConvCase,
    Expected,
    Tensors,
    assert_as_close,
    assert_bitwise,
    cast,
    channels_last,
    compact_rows,
    evaluate,
    expect,
    in_autocast,
    network_cases,
    on_device,
    refused,
    small_integers,
    stored_as_bf16,
)
from cwkernels.testing.cases.gather_conv import random_expected, random_inputs, run, stock
from cwkernels.testing.emulated import is_emulated

OPERATION = "gather_conv"
pytestmark = pytest.mark.usefixtures("poisoned")

# Sizes that fill no vector, panel or band, and architectures that repeat or skip rows.
ODD_CASES = (
    ConvCase("one_pixel", 3, 5, 1, 1, 3),
    ConvCase("one_pixel_7x7", 2, 3, 1, 1, 7, images=3),
    ConvCase("one_pixel_stride_2", 5, 2, 1, 1, 3, stride=2),
    ConvCase("one_row", 4, 6, 1, 5, 5, stride=2),
    ConvCase("one_column", 1, 1, 5, 1, 3, stride=2),
    ConvCase("even_stride_2", 6, 10, 6, 8, 3, stride=2, images=3),
    ConvCase("odd_stride_2", 6, 10, 7, 9, 5, stride=2, images=3),
    ConvCase("odd_stride_2_1x1", 17, 5, 7, 9, 1, stride=2),
    ConvCase("odd_7x7", 3, 33, 7, 9, 7),
    ConvCase("odd_7x7_stride_2", 3, 7, 9, 11, 7, stride=2),
    ConvCase("tail_after_panels", 15, 49, 5, 3, 3, images=1),
    ConvCase("tail_alone_1x1", 31, 7, 3, 5, 1, images=1),
    ConvCase("rows_of_two_3x3", 18, 16, 5, 2, 3, images=2),
    ConvCase("rows_of_three_3x3", 12, 40, 5, 3, 3, images=2),
    ConvCase("rows_of_whole_blocks_3x3", 13, 17, 6, 16, 3, images=2),
    ConvCase("several_bands", 40, 9, 40, 33, 3, images=1),
    ConvCase("several_bands_stride_2", 40, 9, 41, 33, 3, stride=2, images=1),
    ConvCase("wide_row", 24, 3, 2, 700, 3, images=1),
    ConvCase("many_pixels_1x1", 5, 6, 19, 31, 1, images=2),
    ConvCase("two_shared", 5, 6, 7, 9, 3, sets=4, rows=(3, 0)),
    ConvCase("two_separate", 5, 6, 7, 9, 3, sets=4, rows=(3, 0), shared=False),
    ConvCase("five_shared", 5, 18, 3, 4, 3, stride=2, sets=6, rows=(5, 2, 5, 0, 5)),
    ConvCase("five_separate", 5, 18, 3, 4, 5, sets=6, rows=(5, 2, 5, 0, 5), shared=False),
    ConvCase("five_shared_1x1", 9, 8, 5, 5, 1, sets=6, rows=(5, 2, 5, 0, 5)),
    ConvCase("five_separate_1x1", 9, 8, 5, 5, 1, sets=6, rows=(5, 2, 5, 0, 5), shared=False),
    ConvCase("seventy", 5, 6, 2, 3, 3, sets=3, rows=tuple(a % 3 for a in range(70))),
    ConvCase("one_of_many", 16, 16, 6, 6, 3, sets=25, rows=(24,)),
    ConvCase("depthwise_one_channel", 1, 1, 7, 9, 3, depthwise=True),
    ConvCase("depthwise_one_pixel", 5, 5, 1, 1, 5, depthwise=True),
    ConvCase("depthwise_blocks", 70, 70, 7, 9, 3, depthwise=True),
    ConvCase("depthwise_blocks_stride_2", 135, 135, 7, 6, 5, stride=2, depthwise=True),
    ConvCase("depthwise_7x7_stride_2", 9, 9, 9, 11, 7, stride=2, depthwise=True),
    ConvCase("depthwise_1x1", 20, 20, 5, 7, 1, depthwise=True),
    ConvCase("depthwise_1x1_stride_2", 20, 20, 5, 7, 1, stride=2, depthwise=True),
    ConvCase("depthwise_bands", 66, 66, 40, 33, 5, depthwise=True, images=1),
    ConvCase("depthwise_shared", 6, 6, 5, 5, 3, depthwise=True, sets=3, rows=(2, 0, 2)),
    ConvCase(
        "depthwise_separate",
        *(6, 6, 5, 5, 5),
        stride=2,
        depthwise=True,
        sets=3,
        rows=(2, 0, 2),
        shared=False,
    ),
)

# Channels that the matrix units take: tiles that the image's end cuts, of several images, of 16, 32
# and 64 outputs; taps that leave no room for wide tiles; the four parts of a gradient at stride 2.
TILED_CASES = (
    ConvCase("tile_one_pixel", 16, 16, 1, 1, 3),
    ConvCase("tile_cut", 16, 32, 9, 7, 3, sets=3, rows=(2, 0, 2), shared=False),
    ConvCase("tile_shared_1x1", 32, 64, 9, 7, 1, sets=3, rows=(2, 0, 2)),
    ConvCase("tile_stride_2", 16, 32, 9, 8, 3, stride=2, sets=2, rows=(1, 0)),
    ConvCase("tile_stride_2_1x1", 32, 32, 8, 8, 1, stride=2),
    ConvCase("tile_stride_2_row", 16, 16, 1, 9, 3, stride=2),
    ConvCase("tile_of_two_images", 64, 64, 8, 8, 3, images=3),
    ConvCase("tiles_across", 48, 80, 2, 70, 3, images=1),
    ConvCase("tile_5x5_stride_2", 16, 48, 5, 6, 5, stride=2),
    ConvCase("tile_7x7", 32, 16, 6, 6, 7),
    ConvCase("tile_7x7_stride_2", 16, 16, 3, 40, 7, stride=2),
    ConvCase("tile_of_seventy", 16, 16, 2, 3, 1, sets=4, rows=tuple(a * a % 4 for a in range(70))),
)


CASES = (*network_cases(), *ODD_CASES, *TILED_CASES)
DTYPES = (torch.float32, torch.float64)
LAYOUT_CASES = (
    ConvCase("dense_layout", 5, 6, 5, 6, 3, stride=2, sets=4, rows=(3, 1, 3), shared=False),
    ConvCase("pointwise_layout", 5, 18, 5, 6, 1, sets=4, rows=(3, 1, 3), shared=False),
    ConvCase("depthwise_layout", 6, 6, 5, 6, 5, depthwise=True, sets=2, rows=(1,)),
)


@cache
def integer_inputs(case: ConvCase) -> tuple[Tensors, Tensors]:
    """Inputs and cotangent of small integers."""
    tensors = case.tensors(small_integers)
    return tensors, {"output": tensors.pop("cotangent")}


@cache
def integer_expected(case: ConvCase) -> Expected:
    return expect(stock(case), *integer_inputs(case))


def small_enough(case: ConvCase) -> ConvCase:
    """The case, unless the emulator would take seconds for its weights; it has `TILED_CASES`."""
    if is_emulated() and math.prod(case.weight_shape) > 60_000:
        pytest.skip("the emulator runs the same kernels with fewer channels")
    return case


def assert_exact(
    case: ConvCase,
    device: torch.device,
    inputs: Tensors,
    cotangents: Tensors,
) -> None:
    """All results of small integers, bit for bit, where bfloat16 is stored rounded once."""
    results = evaluate(on_device(run(case), device), inputs, cotangents)
    for name, expected in integer_expected(case).reference.items():
        result = results[name]
        assert result is not None
        assert expected is not None
        if result.is_sparse:
            rows, result = compact_rows(name, result)
            assert rows == sorted(set(case.rows))
            expected = expected[rows]
        nonzero = case.nonzero if name == "gradient of weight" else LEAST_NONZERO
        # The few sums of a small tensor may all cancel.
        nonzero = nonzero if expected.numel() > 32 else 0.0
        assert_bitwise(name, result, expected.to(result.dtype), nonzero=nonzero)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_integers_are_exact(case: ConvCase, dtype: torch.dtype, device: torch.device) -> None:
    inputs, cotangents = integer_inputs(case)
    assert_exact(small_enough(case), device, cast(inputs, dtype), cotangents)


# Some of their sums have more than bfloat16's 8 bits. Tiles round a sum over architectures that
# share images once for each of them, so those see their own.
BF16_CASES = ("tile_cut", "tile_7x7", "tile_of_two_images", "tile_stride_2_1x1", "two_shared")
BF16_GENERAL_CASES = ("five_separate", "depthwise_separate", "depthwise_7x7_stride_2")


@pytest.mark.parametrize("name", BF16_CASES + BF16_GENERAL_CASES)
def test_bf16_of_small_integers_is_rounded_once(name: str, gpu: torch.device) -> None:
    case = next(case for case in CASES if case.name == name)
    inputs, cotangents = integer_inputs(case)
    assert_exact(case, gpu, stored_as_bf16(inputs, "input"), cotangents)


def test_bf16_is_as_close_as_stock_autocast(gpu: torch.device) -> None:
    case = next(case for case in CASES if case.name == "tile_shared_1x1")
    inputs, cotangents = random_inputs(case, 0.0)
    cotangents = stored_as_bf16(cotangents, "output")
    results = evaluate(on_device(run(case), gpu), stored_as_bf16(inputs, "input"), cotangents)
    wanted = expect(in_autocast(stock(case)), stored_as_bf16(inputs, "input"), cotangents)
    assert_as_close(results, wanted, terms=case.terms, precision="bf16")
    with torch.autocast(gpu.type, torch.bfloat16):
        again = evaluate(on_device(run(case), gpu), inputs, cotangents)
    output, rounded = results["output"], again["output"]
    assert output is not None
    assert rounded is not None
    assert_bitwise("output in autocast", rounded, output)


def test_bf16_needs_a_gpu() -> None:
    line = (
        "gather_conv: input: wanted float32 or float64 on the CPU, "
        "got bfloat16, whose kernels need a GPU"
    )
    with refused(RuntimeError, line):
        run(CASES[0])(stored_as_bf16(integer_inputs(CASES[0])[0], "input"))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_error_is_that_of_stock_torch(case: ConvCase, mean: float, device: torch.device) -> None:
    results = evaluate(on_device(run(small_enough(case)), device), *random_inputs(case, mean))
    assert_as_close(
        results,
        random_expected(case, mean),
        terms=case.terms,
        nonzero={"gradient of weight": case.nonzero},
    )


@pytest.mark.parametrize("case", [CASES[1], *ODD_CASES[-4:], *LAYOUT_CASES], ids=str)
def test_threads_may_be_of_any_number(case: ConvCase, device: torch.device, threads: int) -> None:
    assert_exact(case, device, *integer_inputs(case))


@settings(
    max_examples=50,
    # The fixture's state, the instruction set, is the same for all examples.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_shape(device: torch.device, data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    depthwise, architectures, sets = data.draw(st.booleans()), draw(1, 4), draw(1, 3)
    channels = draw(1, 70 if depthwise else 40)
    case = ConvCase(
        "any",
        channels,
        channels if depthwise else draw(1, 40),
        height=draw(1, 12),
        width=draw(1, 12),
        kernel_size=data.draw(st.sampled_from([1, 3, 5, 7])),
        stride=draw(1, 2),
        depthwise=depthwise,
        images=draw(1, 3),
        sets=sets,
        rows=tuple(draw(0, sets - 1) for _ in range(architectures)),
        shared=data.draw(st.booleans()),
    )
    inputs, cotangents = integer_inputs(case)
    assert_exact(case, device, cast(inputs, data.draw(st.sampled_from(DTYPES))), cotangents)


def surround(tensor: Tensor, dims: dict[int, int]) -> Tensor:
    """The same values as a slice of a larger tensor of NaN, `dims` wider on both sides."""
    shape = [size + 2 * dims.get(d, 0) for d, size in enumerate(tensor.shape)]
    larger = channels_last(torch.full(shape, torch.nan))
    for d, margin in dims.items():
        larger = larger.narrow(d, margin, tensor.shape[d])
    return larger.copy_(tensor)


def every_second(tensor: Tensor, *dims: int) -> Tensor:
    """The same values as every second element, of a tensor of NaN, along `dims`."""
    larger = channels_last(torch.full([size * 2 for size in tensor.shape], torch.nan))
    for d, size in enumerate(tensor.shape):
        larger = larger.narrow(d, 0, size) if d not in dims else larger
    index = tuple(slice(None, None, 2) if d in dims else slice(None) for d in range(5))
    return larger[index].copy_(tensor)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda tensor: tensor.contiguous(),
    "channels_first_of_all": lambda tensor: tensor.movedim(2, 0).contiguous().movedim(0, 2),
    "transposed_pixels": lambda tensor: channels_last(tensor.mT).mT,
    "channel_slice": lambda tensor: surround(tensor, {2: 3}),
    "nchw_channel_slice": lambda tensor: surround(tensor.movedim(2, 3), {3: 3}).movedim(3, 2),
    "image_slice": lambda tensor: surround(tensor, {0: 1, 1: 2}),
    "cropped": lambda tensor: surround(tensor, {3: 1, 4: 2}),
    "every_second_pixel": lambda tensor: every_second(tensor, 3, 4),
    "every_second_image": lambda tensor: every_second(tensor, 0, 1),
    "every_second_channel": lambda tensor: every_second(tensor, 2),
}


@pytest.mark.parametrize("case", LAYOUT_CASES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(
    case: ConvCase, layout: Callable[[Tensor], Tensor], device: torch.device
) -> None:
    inputs, cotangents = integer_inputs(case)
    strided = {"output": layout(cotangents["output"])}
    assert_exact(case, device, {**inputs, "input": layout(inputs["input"])}, strided)


def test_a_slice_of_a_bank(device: torch.device) -> None:
    case = LAYOUT_CASES[0]
    inputs, cotangents = integer_inputs(case)
    weight = inputs["weight"]
    larger = torch.full((weight.shape[0] + 2, *weight.shape[1:]), torch.nan)
    larger[1:-1] = weight
    assert_exact(case, device, {**inputs, "weight": larger[1:-1]}, cotangents)


@pytest.mark.parametrize("depthwise", [False, True])
def test_expanded_images_and_gradients(depthwise: bool, device: torch.device) -> None:
    case = ConvCase("expanded", 6, 6, 5, 6, 3, depthwise=depthwise, sets=3, rows=(2, 0))
    inputs, cotangents = integer_inputs(case)
    image = inputs["input"][:, :1]
    gradient = cotangents["output"][:1, :1, :, :1, :1]
    expanded = {**inputs, "input": image.expand(2, 4, -1, -1, -1)}
    stretched = {"output": gradient.expand(2, 4, -1, 5, 6)}
    results = evaluate(on_device(run(case), device), expanded, stretched)
    for name, expected in expect(stock(case), expanded, stretched).reference.items():
        result = results[name]
        assert result is not None
        assert expected is not None
        if result.is_sparse:
            rows, result = compact_rows(name, result)
            expected = expected[rows]
        assert_bitwise(name, result, expected.float())


@pytest.mark.parametrize("stride", [1, 2])
def test_one_architecture_has_no_dimension(stride: int, device: torch.device) -> None:
    case = ConvCase("one", 5, 6, 7, 9, 3, stride=stride, sets=3, rows=(2,))
    tensors, _ = integer_inputs(case)
    images, weight = tensors["input"][0], tensors["weight"]
    expected = F.conv2d(images, weight[2], stride=stride, padding=1)
    images, weight = images.to(device), weight.to(device)
    output = ops.gather_conv(images, weight, torch.tensor(2), stride=stride)
    assert_bitwise("output", output.cpu(), expected)
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("depthwise", [False, True])
def test_no_images(kernel_size: int, depthwise: bool, device: torch.device) -> None:
    inputs = {
        "input": torch.zeros(2, 0, 4, 5, 6),
        "weight": torch.ones(3, 4, 1 if depthwise else 4, kernel_size, kernel_size),
        "rows": torch.tensor([2, 0]),
    }
    case = ConvCase("none", 4, 4, 5, 6, kernel_size, depthwise=depthwise, images=0)
    results = evaluate(on_device(run(case), device), inputs, {"output": torch.zeros(2, 0, 4, 5, 6)})
    output, input_gradient, weight_gradient = results.values()
    assert output is not None
    assert input_gradient is not None
    assert weight_gradient is not None
    assert output.shape == input_gradient.shape == (2, 0, 4, 5, 6)
    rows, values = compact_rows("gradient of weight", weight_gradient)
    assert rows == [0, 2]
    assert torch.equal(values, torch.zeros(2, *inputs["weight"].shape[1:]))


def test_no_architectures(device: torch.device) -> None:
    inputs = {
        "input": torch.ones(2, 4, 5, 6),
        "weight": torch.ones(3, 7, 4, 3, 3),
        "rows": torch.tensor([], dtype=torch.int64),
    }
    case = ConvCase("none", 4, 7, 5, 6, 3)
    results = evaluate(on_device(run(case), device), inputs, {"output": torch.zeros(0, 2, 7, 5, 6)})
    output, input_gradient, weight_gradient = results.values()
    assert output is not None
    assert input_gradient is not None
    assert weight_gradient is not None
    assert output.shape == (0, 2, 7, 5, 6)
    assert torch.equal(input_gradient, torch.zeros(2, 4, 5, 6))
    assert compact_rows("gradient of weight", weight_gradient)[0] == []
    assert not weight_gradient.to_dense().any()


def test_the_cases_cover_what_the_networks_run() -> None:
    shapes = {
        (case.in_channels, case.out_channels, case.kernel_size, case.stride, case.height)
        for case in network_cases()
    }
    assert len(network_cases()) == 45
    assert shapes >= {(3, 16, 3, 1, 32), (16, 16, 3, 1, 32), (32, 32, 1, 1, 16), (64, 64, 3, 1, 8)}
    assert shapes >= {(16, 32, 3, 2, 32), (32, 64, 3, 2, 16), (16, 32, 1, 1, 16)}
    assert shapes >= {(192, 192, 5, 2, 32), (1536, 1536, 5, 1, 4), (32, 64, 1, 2, 32)}
