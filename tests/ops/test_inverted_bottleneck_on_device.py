"""inverted_bottleneck with the choice on the device: bit for bit as with one on the host."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.testing import (
    Function,
    Results,
    Tensors,
    assert_bitwise,
    cast,
    evaluate,
    on_device,
    refused,
    stored_as_bf16,
)
from cwkernels.testing.cases.inverted_bottleneck import (
    IDENTITY,
    K3_E3,
    K5_E6,
    Layer,
    call,
    cotangents,
)
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated

OPERATION = "inverted_bottleneck"
pytestmark = pytest.mark.usefixtures("poisoned")
on_gpu = pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)

LAYERS = {
    "residual": Layer(),
    "strided": Layer(5, 6, stride=2),
    "widening": Layer(3, 7),
    "first_candidate_wider": Layer(4, 3, expansions=(6, 2)),
    "evaluation": Layer(training=False),
    "strided_evaluation": Layer(5, 6, stride=2, training=False),
    "one_row": Layer(stride=2, height=1, width=5),
    "recompute_strided": Layer(5, 6, stride=2, recompute=True),
    "multiples_of_16": Layer(16, 16, images=2, height=15, width=17),
    "multiples_of_16_strided": Layer(32, 16, stride=2, images=3, height=8, width=7),
    "multiples_of_16_evaluation": Layer(16, 32, images=5, height=4, width=4, training=False),
    "multiples_of_16_recompute": Layer(16, 16, images=2, height=5, width=18, recompute=True),
    "macro_0": Layer(32, 64, stride=2, images=1, height=6, width=6),
    "macro_1": Layer(64, 64, images=1, height=4, width=4),
}
# One architecture of each code; rows that repeat within a code and between two.
SELECTIONS = {
    "identity": torch.tensor([IDENTITY, 2]),
    "k3_e3": torch.tensor([K3_E3, 0]),
    "k5_e6": torch.tensor([[K5_E6, 1]]),
    "three": torch.tensor([[K3_E3, 2], [IDENTITY, 2], [K3_E3, 2]]),
    "six": torch.tensor(
        [[K5_E6, 2], [K3_E3, 0], [IDENTITY, 2], [K5_E6, 0], [K5_E6, 2], [IDENTITY, 2]]
    ),
}
NOWHERE = torch.tensor([[3, 0], [K3_E3, 1], [-1, 1], [K5_E6, 3], [IDENTITY, -1], [K3_E3, 1]])


def whole(layer: Layer, selection: Tensor) -> Function:
    """The operation with its statistics as they are, zeros among them."""

    def function(tensors: Tensors) -> Tensors:
        output, statistics = call(layer, selection, tensors)
        return {"output": output, "statistics": statistics.detach()}

    return function


def chosen(selection: Tensor, device: torch.device) -> Tensor:
    """The same choice, where kernels read it."""
    return selection.to(device, torch.int32)


def rows_of(gradient: Tensor | None) -> dict[int, Tensor]:
    """A compact gradient's values by row, without the slots that belong to none."""
    if gradient is None:
        return {}
    rows: list[int] = gradient._indices()[0].tolist()
    live = [row for row in rows if row >= 0]
    assert len(live) == len(set(live))
    return {row: gradient._values()[u] for u, row in enumerate(rows) if row >= 0}


def assert_same(results: Results, expected: Results) -> None:
    """Raises AssertionError unless all is the same bit for bit, gradients row by row."""
    assert results.keys() == expected.keys()
    for name, wanted in expected.items():
        got = results[name]
        if not name.startswith("gradient of ") or name == "gradient of input":
            assert got is not None
            assert wanted is not None
            assert_bitwise(name, got, wanted, nonzero=0)
            continue
        by_row, wanted_by_row = rows_of(got), rows_of(wanted)
        assert by_row.keys() == wanted_by_row.keys(), name
        for row, values in wanted_by_row.items():
            assert_bitwise(f"{name}[{row}]", by_row[row], values, nonzero=0)


def assert_equals_by_value(
    layer: Layer, selection: Tensor, device: torch.device, inputs: Tensors
) -> None:
    gradient = cotangents(layer, selection)
    by_value = evaluate(on_device(whole(layer, selection), device), inputs, gradient)
    there = chosen(selection, device)
    by_pointer = evaluate(on_device(whole(layer, there), device), inputs, gradient)
    assert_same(by_pointer, by_value)


@on_gpu
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_equals_by_value(layer: Layer, selection: Tensor, device: torch.device) -> None:
    assert_equals_by_value(layer, selection, device, layer.inputs())


@on_gpu
@pytest.mark.parametrize("name", ["strided", "multiples_of_16", "multiples_of_16_evaluation"])
def test_own_images(name: str, device: torch.device) -> None:
    layer, selection = LAYERS[name], SELECTIONS["six"]
    assert_equals_by_value(layer, selection, device, layer.inputs(architectures=len(selection)))


@on_gpu
@pytest.mark.parametrize("name", ["residual", "strided", "strided_evaluation"])
def test_float64(name: str, device: torch.device) -> None:
    layer = LAYERS[name]
    inputs = cast(layer.inputs(), torch.float64)
    assert_equals_by_value(layer, SELECTIONS["six"], device, inputs)


@on_gpu
@pytest.mark.parametrize("name", ["strided", "multiples_of_16", "multiples_of_16_evaluation"])
def test_bf16(name: str, device: torch.device) -> None:
    layer = LAYERS[name]
    inputs = stored_as_bf16(layer.inputs(), "input")
    assert_equals_by_value(layer, SELECTIONS["six"], device, inputs)


@on_gpu
@pytest.mark.parametrize("channels", [6, 16])
def test_groups_of_architectures(channels: int, device: torch.device) -> None:
    # More than one launch takes; rows repeat within a group and between groups.
    layer = Layer(channels, channels, stride=2, images=2, height=4, width=3)
    selection = SELECTIONS["six"].repeat(7, 1)
    assert_equals_by_value(layer, selection, device, layer.inputs())


@on_gpu
@pytest.mark.parametrize("name", ["residual", "strided"])
def test_dense_gradients(name: str, device: torch.device) -> None:
    layer, selection = replace(LAYERS[name], dense_grad=True), SELECTIONS["six"]
    inputs, gradient = layer.inputs(), cotangents(layer, selection)
    by_value = evaluate(on_device(whole(layer, selection), device), inputs, gradient)
    there = chosen(selection, device)
    for name, got in evaluate(on_device(whole(layer, there), device), inputs, gradient).items():
        wanted = by_value[name]
        assert got is not None
        assert wanted is not None
        assert_bitwise(name, got, wanted, nonzero=0)


@on_gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["residual", "strided", "multiples_of_16_strided"])
def test_nothing_is_recorded(name: str, training: bool, device: torch.device) -> None:
    layer, selection = replace(LAYERS[name], training=training), SELECTIONS["six"]
    inputs = layer.inputs()
    with torch.no_grad():
        by_value = evaluate(on_device(whole(layer, selection), device), inputs, {})
        there = chosen(selection, device)
        by_pointer = evaluate(on_device(whole(layer, there), device), inputs, {})
    for name in ("output", "statistics"):
        got, wanted = by_pointer[name], by_value[name]
        assert got is not None
        assert wanted is not None
        assert_bitwise(name, got, wanted, nonzero=0)


@on_gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["residual", "strided", "multiples_of_16", "macro_0"])
def test_what_does_not_exist_reads_no_bank(name: str, training: bool, device: torch.device) -> None:
    layer = replace(LAYERS[name], training=training)
    inputs, gradient = layer.inputs(architectures=len(NOWHERE)), cotangents(layer, NOWHERE)
    there = chosen(NOWHERE, device)
    results = evaluate(on_device(whole(layer, there), device), inputs, gradient)
    good = torch.tensor([1, 5])
    there = chosen(NOWHERE[good], device)
    own = {**inputs, "input": inputs["input"][good]}
    alone = evaluate(
        on_device(whole(layer, there), device), own, {"output": gradient["output"][good]}
    )
    passed = {"output": inputs["input"], "gradient of input": gradient["output"]}
    for name in ("output", "statistics", "gradient of input"):
        got, wanted = results[name], alone[name]
        assert got is not None
        assert wanted is not None
        expected = torch.zeros_like(got)
        if layer.keeps_shape and name in passed:
            expected.copy_(passed[name])
        expected[good] = wanted
        assert_bitwise(name, got, expected, nonzero=0)
    for name, wanted in alone.items():
        if name.startswith("gradient of ") and name != "gradient of input":
            assert rows_of(results[name]).keys() == rows_of(wanted).keys()
            for row, values in rows_of(wanted).items():
                assert_bitwise(name, rows_of(results[name])[row], values)


def slots(selection: Tensor, layer: Layer, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Rows [banks, A] and values of a backward call, as the operation gives them."""
    tensors = {name: tensor.to(device) for name, tensor in layer.inputs().items()}
    running = ([tensor.to(device) for tensor in group] for group in layer.running())
    arguments = (
        tensors["input"][None],
        chosen(selection, device),
        *layer.banks(tensors),
        *running,
    )
    options = (layer.stride, layer.training, layer.eps, layer.recompute, True)
    _, *kept = torch.ops.cwkernels.inverted_bottleneck(*arguments, *options, False, True)
    gradient = cotangents(layer, selection)["output"].to(device)
    _, (rows,), values = torch.ops.cwkernels.inverted_bottleneck_backward(
        gradient, *arguments, *kept, *options, True
    )
    return rows.cpu(), [value.cpu() for value in values]


@on_gpu
def test_slots_of_no_row_are_not_written(device: torch.device) -> None:
    selection = torch.tensor(
        [[K5_E6, 2], [IDENTITY, 1], [K5_E6, 2], [3, 0], [K5_E6, 1], [IDENTITY, 1], [K3_E3, 2]]
    )
    rows, values = slots(selection, Layer(5, 6, stride=2), device)
    k3, k5 = [-1, -1, -1, -1, -1, -1, 2], [2, -1, -1, -1, 1, -1, -1]
    assert rows.tolist() == [k3] * 3 + [k5] * 3 + [[-1, 1, -1, -1, -1, -1, -1]]
    for bank, value in enumerate(values):
        assert value.shape[0] == len(selection)
        live = rows[bank % 7] >= 0
        assert torch.isfinite(value[live]).all()
        assert torch.isnan(value[~live]).all()


@on_gpu
def test_frozen_weights_get_no_slots(device: torch.device) -> None:
    layer = Layer(5, 6, stride=2)
    inputs = {name: tensor.to(device) for name, tensor in layer.inputs().items()}
    inputs["shifts[1]"].requires_grad_()
    output, _ = call(layer, chosen(SELECTIONS["three"], device), inputs)
    output.backward(cotangents(layer, SELECTIONS["three"])["output"].to(device))
    by_value = inputs["shifts[1]"].detach().requires_grad_()
    output, _ = call(layer, SELECTIONS["three"], {**inputs, "shifts[1]": by_value})
    output.backward(cotangents(layer, SELECTIONS["three"])["output"].to(device))
    (row,), (wanted,) = zip(*rows_of(by_value.grad).items(), strict=True)
    assert_bitwise("shifts[1]", rows_of(inputs["shifts[1]"].grad)[row], wanted)


@on_gpu
@pytest.mark.parametrize("training", [True, False])
def test_no_images(training: bool, device: torch.device) -> None:
    layer = Layer(5, 6, stride=2, training=training, images=0)
    there = chosen(SELECTIONS["six"], device)
    gradient = cotangents(layer, SELECTIONS["six"])
    results = evaluate(on_device(whole(layer, there), device), layer.inputs(), gradient)
    output = results["output"]
    assert output is not None
    assert output.shape == (6, *layer.output_shape)
    assert not any(rows_of(results[name]) for name in results if "weights" in name)


LAUNCHES = {
    "training": (Layer(16, 32, stride=2), 4, 6),
    "recompute": (Layer(16, 16, recompute=True), 4, 8),
    "evaluation": (Layer(16, 16, training=False), 4, 6),
    "every_shape": (Layer(5, 6, stride=2), 4, 6),
}


@pytest.mark.parametrize("code", [IDENTITY, K3_E3, K5_E6, 3])
@pytest.mark.parametrize(("layer", "forward", "backward"), LAUNCHES.values(), ids=LAUNCHES)
def test_launches_do_not_depend_on_the_choice(
    layer: Layer, forward: int, backward: int, code: int
) -> None:
    reason = why_not_emulated(OPERATION)
    if reason is not None:
        pytest.skip(reason)
    selection = torch.tensor([[code, 2], [code, 0]], dtype=torch.int32)
    inputs = {name: tensor.requires_grad_() for name, tensor in layer.inputs().items()}
    with emulated():
        output, _ = call(layer, selection, inputs)
        assert emulated_launches() == forward
        output.backward(cotangents(layer, selection)["output"])
        assert emulated_launches() == forward + backward


@pytest.mark.parametrize("dense_grad", [True, False])
def test_opcheck(dense_grad: bool) -> None:
    # What a smaller choice leaves of `kept`, and slots of no row, are not written and not the same
    # twice: the comparison of results takes the largest choice, and dense gradients.
    reason = why_not_emulated(OPERATION)
    if reason is not None:
        pytest.skip(reason)
    layer = Layer(2, 2, stride=2, images=2, height=3, width=4)
    tensors = {name: tensor.requires_grad_() for name, tensor in layer.inputs().items()}
    selection = chosen(SELECTIONS["k5_e6"], torch.device("cpu"))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (tensors["input"][None], selection, *layer.banks(tensors), *layer.running())
    with emulated():
        torch.library.opcheck(
            torch.ops.cwkernels.inverted_bottleneck.default,
            (*arguments, 2, True, 1e-5, False, True, dense_grad, True),
            test_utils="ALL" if dense_grad else tests,
        )


def test_the_reference_reads_it_too() -> None:
    layer, selection = LAYERS["strided"], SELECTIONS["six"]
    inputs, gradient = layer.inputs(), cotangents(layer, selection)
    with ops.backend("reference"):
        expected = evaluate(whole(layer, selection), inputs, gradient)
        results = evaluate(whole(layer, selection.int()), inputs, gradient)
    assert_same(results, expected)


def test_the_cpus_kernels_refuse_it() -> None:
    layer = Layer()
    message = (
        "inverted_bottleneck: selection: wanted int64 [A, 2], as the CPU's kernels plan by it, "
        "got int32 [6, 2]"
    )
    with refused(RuntimeError, message):
        call(layer, SELECTIONS["six"].int(), layer.inputs())
