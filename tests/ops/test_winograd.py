"""gather_conv at precision "high": 3x3 convolutions by Winograd's F(4x4, 3x3); tf32 on a GPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cwkernels.testing import (
    ConvCase,
    Results,
    Tensors,
    assert_as_close,
    assert_bitwise,
    channels_last,
    dense_random,
    evaluate,
    expect,
    on_device,
    processor,
)
from cwkernels.testing.cases.gather_conv import random_expected, random_inputs, run, stock
from cwkernels.testing.emulated import is_emulated

OPERATION = "gather_conv"
pytestmark = pytest.mark.usefixtures("poisoned")

NETWORK_CASES = tuple(
    ConvCase(f"nb201_{channels}", channels, channels, side, side, 3, images=64)
    for channels, side in ((16, 32), (32, 16), (64, 8))
)
# Multiples of 16, which all instruction sets take; tiles that the image's end cuts, blocks of
# images that do not come out even, bands of rows, panels of one, two and three vectors.
CASES = (
    ConvCase("one_tile", 16, 16, 4, 4, 3, images=33),
    ConvCase("cut_tiles", 16, 48, 6, 7, 3, images=9),
    ConvCase("cut_columns", 48, 16, 8, 5, 3, images=17),
    ConvCase("cut_rows", 32, 80, 7, 12, 3, images=11),
    ConvCase("two_tiles_an_image", 32, 32, 4, 8, 3, images=21),
    ConvCase("bands", 16, 16, 41, 130, 3, images=2),
    ConvCase("bands_of_one_row_of_tiles", 128, 16, 11, 70, 3, images=1),
    ConvCase("wide_channels", 80, 112, 6, 6, 3, images=8),
    ConvCase("two_shared", 16, 32, 8, 8, 3, images=9, sets=4, rows=(3, 0)),
    ConvCase("three_separate", 32, 16, 6, 8, 3, images=9, sets=3, rows=(2, 0, 2), shared=False),
    ConvCase("five_shared", 16, 16, 10, 6, 3, images=6, sets=6, rows=(5, 2, 5, 0, 5)),
)
SEVERAL = tuple(case for case in CASES if len(case.rows) > 1)
DIRECT_CASES = (
    ConvCase("stride_2", 16, 16, 16, 16, 3, stride=2, images=4),
    ConvCase("1x1", 16, 16, 16, 16, 1, images=4),
    ConvCase("5x5", 16, 16, 16, 16, 5, images=4),
    ConvCase("depthwise", 16, 16, 16, 16, 3, depthwise=True, images=4),
    ConvCase("odd_inputs", 18, 16, 16, 16, 3, images=4),
    ConvCase("odd_outputs", 16, 18, 16, 16, 3, images=4),
    ConvCase("mostly_cut_tiles", 16, 16, 5, 5, 3, images=40),
)


def fewer_images(case: ConvCase) -> ConvCase:
    """The case with as many images as the emulator takes a moment for; whole elsewhere."""
    return replace(case, images=min(case.images, 3)) if is_emulated() else case


def results_of(
    case: ConvCase, device: torch.device, inputs: Tensors, cotangents: Tensors
) -> dict[str, Tensor]:
    """Output and gradients at precision "high", that of the bank as its compact values."""
    results = evaluate(on_device(run(case, "high"), device), inputs, cotangents)
    dense = {}
    for name, result in results.items():
        assert result is not None
        dense[name] = result._values() if result.is_sparse else result
    return dense


def assert_same(results: Results, expected: Results) -> None:
    for name, wanted in expected.items():
        result = results[name]
        assert result is not None
        assert wanted is not None
        assert_bitwise(name, result, wanted)


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("case", [*NETWORK_CASES, *CASES], ids=str)
def test_error_is_within_the_table(case: ConvCase, mean: float, device: torch.device) -> None:
    case = fewer_images(case)
    results = evaluate(on_device(run(case, "high"), device), *random_inputs(case, mean))
    assert_as_close(results, random_expected(case, mean), terms=case.terms, precision="high")


@pytest.mark.parametrize("case", [*NETWORK_CASES, *CASES], ids=str)
def test_it_is_used(case: ConvCase, device: torch.device) -> None:
    case = fewer_images(case)
    inputs, cotangents = random_inputs(case, 0.0)
    high = results_of(case, device, inputs, cotangents)
    highest = evaluate(on_device(run(case, "highest"), device), inputs, cotangents)
    assert not torch.equal(high["output"], highest["output"])  # type: ignore[arg-type]
    for name in ("gradient of input", "gradient of weight"):
        direct = highest[name]
        assert direct is not None
        direct = direct._values() if direct.is_sparse else direct
        assert not torch.equal(high[name], direct), name


@pytest.mark.parametrize("case", DIRECT_CASES, ids=str)
def test_other_convolutions_are_direct(case: ConvCase, device: torch.device) -> None:
    if processor() == "gpu":
        pytest.skip("tf32 is for all convolutions")
    assert_direct(case, torch.float32, device)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_is_direct(case: ConvCase, device: torch.device) -> None:
    assert_direct(case, torch.float64, device)


def assert_direct(case: ConvCase, dtype: torch.dtype, device: torch.device) -> None:
    case = fewer_images(case)
    inputs, cotangents = random_inputs(case, 0.0)
    typed = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
    high = results_of(case, device, typed, cotangents)
    direct = evaluate(on_device(run(case, "highest"), device), typed, cotangents)
    for name, result in direct.items():
        assert result is not None
        assert_bitwise(name, high[name], result._values() if result.is_sparse else result)


@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_architectures_are_independent_and_summed_in_order(
    case: ConvCase, device: torch.device, threads: int
) -> None:
    case = fewer_images(case)
    inputs, cotangents = random_inputs(case, 0.0)
    together = results_of(case, device, inputs, cotangents)
    singles = []
    for a, row in enumerate(case.rows):
        own = {
            "input": inputs["input"] if case.shared else inputs["input"][a, None],
            "weight": inputs["weight"],
            "rows": torch.tensor([row]),
        }
        cotangent = {"output": cotangents["output"][a, None]}
        singles.append(results_of(case, device, own, cotangent))
        assert_bitwise(f"output[{a}]", together["output"][a, None], singles[a]["output"])
    gradients = [single["gradient of input"] for single in singles]
    summed = [in_order(gradients)] if case.shared else gradients
    assert_bitwise("gradient of input", together["gradient of input"], torch.cat(summed))
    for slot, row in enumerate(sorted(set(case.rows))):
        own_gradients = [
            single["gradient of weight"][0]
            for a, single in enumerate(singles)
            if case.rows[a] == row
        ]
        values = together["gradient of weight"][slot]
        assert_bitwise(f"gradient of weight[{row}]", values, in_order(own_gradients))


def in_order(tensors: list[Tensor]) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


@pytest.mark.parametrize("case", [NETWORK_CASES[2], CASES[1], CASES[5], SEVERAL[2]], ids=str)
def test_threads_may_be_of_any_number(case: ConvCase, device: torch.device, threads: int) -> None:
    case = fewer_images(case)
    inputs, cotangents = random_inputs(case, 0.0)
    results = evaluate(on_device(run(case, "high"), device), inputs, cotangents)
    assert_as_close(results, random_expected(case, 0.0), terms=case.terms, precision="high")
    first = results_of(case, device, inputs, cotangents)
    assert_same(results_of(case, device, inputs, cotangents), first)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda tensor: tensor.contiguous(),
    "channel_slice": lambda tensor: channels_last(torch.cat([tensor] * 3, 2))[:, :, 16:32],
    "image_slice": lambda tensor: torch.cat([tensor] * 2, 1)[:, : tensor.shape[1]],
    "every_second_pixel": lambda tensor: channels_last(
        tensor.repeat_interleave(2, 3).repeat_interleave(2, 4)
    )[:, :, :, ::2, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(layout: Callable[[Tensor], Tensor], device: torch.device) -> None:
    case = ConvCase("layout", 16, 16, 6, 7, 3, images=9, sets=2, rows=(1,))
    inputs, cotangents = random_inputs(case, 0.0)
    strided = {**inputs, "input": layout(inputs["input"])}
    assert torch.equal(strided["input"], inputs["input"])
    results = results_of(case, device, strided, {"output": layout(cotangents["output"])})
    assert_same(results, results_of(case, device, inputs, cotangents))


@settings(
    max_examples=30,
    # The fixture's state, the instruction set, is the same for all examples.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_shape(device: torch.device, data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    sets = draw(1, 3)
    case = ConvCase(
        "any",
        16 * draw(1, 5),
        16 * draw(1, 5),
        height=draw(1, 14),
        width=draw(1, 14),
        kernel_size=3,
        images=draw(1, 4 if is_emulated() else 20),
        sets=sets,
        rows=tuple(draw(0, sets - 1) for _ in range(draw(1, 3))),
        shared=data.draw(st.booleans()),
    )
    tensors = case.tensors(dense_random, seed=draw(0, 9))
    cotangents = {"output": tensors.pop("cotangent")}
    results = evaluate(on_device(run(case, "high"), device), tensors, cotangents)
    expected = expect(stock(case), tensors, cotangents)
    nonzero = {"gradient of weight": case.nonzero}
    assert_as_close(results, expected, terms=case.terms, nonzero=nonzero, precision="high")


def test_infinities_stay_in_their_tiles(device: torch.device) -> None:
    case = ConvCase("infinity", 16, 16, 12, 12, 3)
    inputs, _ = random_inputs(case, 0.0)
    images = inputs["input"].clone()
    images[0, 0, 3, 1, 1] = torch.inf
    output = run(case, "high")({**inputs, "input": images})["output"]
    assert not output[0, 0, :, :3, :3].isfinite().any()
    assert output[0, 0, :, 4:, 4:].isfinite().all()
    assert output[0, 1].isfinite().all()


def test_opcheck() -> None:
    images, weight = dense_random(1, 8, 16, 8, 8), dense_random(3, 16, 16, 3, 3, seed=1)
    rows, kernels = torch.tensor([2, 0, 2]), torch.ops.cwkernels
    gradient = dense_random(3, 8, 16, 8, 8, seed=2)
    leaves = (images.clone().requires_grad_(), weight.clone().requires_grad_())
    shape = list(images.shape)
    torch.library.opcheck(kernels.gather_conv.default, (*leaves, rows, 1, 1, False, True))
    for operation, arguments in (
        (kernels.gather_conv_backward_input.default, (gradient, weight, rows, shape, 1, 1, True)),
        (kernels.gather_conv_backward_weight.default, (gradient, images, rows, 3, 1, 1, True)),
    ):
        torch.library.opcheck(operation, arguments)
