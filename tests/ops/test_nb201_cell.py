"""nb201_cell against a cell of stock torch: values and gradients of every kind of architecture."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.ops._cell_plan import active_edges
from cwkernels.ops.precision import Precision
from cwkernels.testing import (
    CELL_CONVOLUTIONS,
    as_reference,
    assert_as_close,
    assert_bitwise,
    cast,
    compact_rows,
    evaluate,
    expect,
    on_device,
    processor,
    small_integers,
)
from cwkernels.testing.cases.nb201_cell import (
    CHANNELS,
    HAND_PICKED,
    Cell,
    active,
    alive,
    cotangents,
    run,
    sample,
    select,
    stock,
)

OPERATION = "nb201_cell"
pytestmark = pytest.mark.usefixtures("poisoned")

# Few of the six edges may be convolutions.
NONZERO = {"edge means": 0.01, "edge variances": 0.01}
CELLS = {
    "training": Cell(),
    "evaluation": Cell(training=False),
    "projection": Cell(projection=True),
    "projection_in_evaluation": Cell(projection=True, training=False),
    "pads_counted": Cell(count_include_pad=True),
    "one_column": Cell(images=2, height=9, width=1),
    "large_eps": Cell(eps=0.5),
}
# Whole vectors of channels on every instruction set, so 3x3 convolutions may run by Winograd: tiles
# that the image's end cuts, blocks of several images that do not come out even.
WIDE = {
    "training": Cell(channels=16, images=8, height=6, width=7),
    "evaluation": Cell(channels=16, images=8, height=6, width=7, training=False),
    "projection": Cell(channels=16, images=8, height=6, width=7, projection=True),
    "two_vectors": Cell(channels=32, images=3, height=9, width=8),
}
EVERY_SIZE = {
    **CELLS,
    **{f"wide_{name}": replace(cell, images=2) for name, cell in WIDE.items()},
    "cut_tiles": Cell(channels=16, images=2, height=17, width=19),
    "odd_channels": Cell(channels=48, images=1, height=5, width=4),
    "chunks_of_channels": Cell(channels=128, images=1, height=4, width=5),
}


def terms(cell: Cell, architectures: int) -> dict[str, int]:
    return {"": cell.images * cell.height * cell.width * architectures}


@pytest.mark.parametrize("codes", HAND_PICKED.values(), ids=HAND_PICKED)
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_one_architecture(cell: Cell, codes: tuple[int, ...]) -> None:
    selection = select([codes])[0]
    inputs, gradient = cell.inputs(), cotangents(cell, selection)
    expected = expect(stock(cell, selection), inputs, gradient)
    for function in (run(cell, selection), as_reference(run(cell, selection))):
        results = evaluate(function, inputs, gradient)
        assert_as_close(results, expected, terms=terms(cell, 1), nonzero=NONZERO)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_several_architectures(cell: Cell, shared: bool, device: torch.device) -> None:
    for seed, architectures in enumerate((2, 5, 5)):
        selection = select(sample(architectures, seed), seed)
        inputs = cell.inputs(architectures=None if shared else architectures)
        gradient = cotangents(cell, selection)
        results = evaluate(on_device(run(cell, selection), device), inputs, gradient)
        expected = expect(stock(cell, selection), inputs, gradient)
        assert_as_close(results, expected, terms=terms(cell, architectures), nonzero=NONZERO)


@pytest.mark.parametrize("cell", EVERY_SIZE.values(), ids=EVERY_SIZE)
def test_every_kind_of_architecture_at_once(cell: Cell, device: torch.device) -> None:
    selection = select(list(HAND_PICKED.values()), seed=4)
    inputs, gradient = cell.inputs(), cotangents(cell, selection)
    with ops.float32_conv_precision("highest"):
        results = evaluate(on_device(run(cell, selection), device), inputs, gradient)
    expected = expect(stock(cell, selection), inputs, gradient)
    assert_as_close(results, expected, terms=terms(cell, len(selection)), nonzero=NONZERO)


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("channels", [CHANNELS, 16, 32])
def test_evaluation_that_keeps_nothing(
    channels: int, projection: bool, device: torch.device
) -> None:
    cell = Cell(training=False, channels=channels, images=2, projection=projection)
    selection, inputs = select(list(HAND_PICKED.values()), seed=4), cell.inputs()
    with torch.no_grad(), ops.float32_conv_precision("highest"):
        results = evaluate(on_device(run(cell, selection), device), inputs, {})
    expected = expect(stock(cell, selection), inputs, {})
    assert_as_close(results, expected, terms=terms(cell, len(selection)), nonzero=NONZERO)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("cell", WIDE.values(), ids=WIDE)
def test_both_precisions(cell: Cell, shared: bool, device: torch.device) -> None:
    codes = [HAND_PICKED["convolutions_3x3"], *sample(3, seed=11)]
    selection = select([*codes, codes[0]], seed=11)
    inputs = cell.inputs(architectures=None if shared else len(selection))
    gradient = cotangents(cell, selection)
    expected = expect(stock(cell, selection), inputs, gradient)
    results = {}
    for precision in get_args(Precision):
        with ops.float32_conv_precision(precision):
            results[precision] = evaluate(on_device(run(cell, selection), device), inputs, gradient)
        assert_as_close(
            results[precision],
            expected,
            terms=terms(cell, len(selection)),
            nonzero=NONZERO,
            precision=precision,
            convolutions=CELL_CONVOLUTIONS,
            # Of both inner nodes. Winograd's errors are so small that few are near enough to zero.
            flips=2 if processor() == "gpu" else 0,
        )
    high, highest = (results[precision]["output"] for precision in get_args(Precision))
    assert high is not None
    assert highest is not None
    assert not torch.equal(high, highest)


def test_small_integers_are_exact(device: torch.device) -> None:
    # Variance 3 and eps 1 make the standard deviation 2. Average pools divide by 9: left out.
    class Exact(Cell):
        def running(self, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
            mean, var = super().running(dtype)
            return [m.round() for m in mean], [torch.full_like(v, 3.0) for v in var]

    cell = Exact(training=False, eps=1.0, channels=3, images=2, height=4, width=3)
    combinations = list(product(range(4), repeat=6))[::97]
    for start in range(0, len(combinations), 7):
        selection = select(combinations[start : start + 7], start)
        inputs = cell.inputs(small_integers)
        gradient = cotangents(cell, selection, small_integers)
        results = evaluate(on_device(run(cell, selection), device), inputs, gradient)
        exact = evaluate(stock(cell, selection), cast(inputs, torch.float64), gradient)
        for name in ("output", *(name for name in exact if name.startswith("gradient"))):
            result, expected = results[name], exact[name]
            if expected is None or not expected.any():
                assert result is None, name
                continue
            assert result is not None, name
            rows = expected.flatten(1).any(1).nonzero()[:, 0].tolist()
            if result.is_sparse:
                selected, result = compact_rows(name, result)
                assert selected == rows, name
                expected = expected[rows]
            assert_bitwise(name, result, expected.float())


def test_active_edges_lie_on_paths() -> None:
    for codes in product(range(5), repeat=6):
        assert {edge for edge, is_active in enumerate(active_edges(codes)) if is_active} == active(
            codes
        )


@pytest.mark.parametrize("backend", ["kernels", "reference"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("codes", HAND_PICKED.values(), ids=HAND_PICKED)
def test_dead_convolutions_get_no_gradient_and_no_statistics(
    codes: tuple[int, ...], training: bool, backend: str
) -> None:
    cell, selection = Cell(training=training), select([codes, codes], seed=3)
    function = run(cell, selection)
    function = as_reference(function) if backend == "reference" else function
    results = evaluate(function, cell.inputs(), cotangents(cell, selection))
    for edge in range(6):
        statistics = results["edge variances"]
        assert statistics is not None
        assert bool(statistics[:, edge].any()) == (training and edge in alive(codes))
        for code in (2, 3):
            gradient = results[f"gradient of weights[{2 * edge + code - 2}]"]
            rows = sorted(set(selection[:, edge, 1].tolist()))
            if edge in alive(codes) and codes[edge] == code:
                assert gradient is not None
                assert gradient.coalesce().indices()[0].tolist() == rows
            else:
                assert gradient is None


@pytest.mark.parametrize("cell", [Cell(), Cell(training=False), *list(WIDE.values())[:2]], ids=str)
def test_an_architecture_does_not_depend_on_the_others(cell: Cell, device: torch.device) -> None:
    for shared in (True, False):
        selection = select([*sample(4, seed=7), HAND_PICKED["everything"]], seed=7)
        inputs = cell.inputs(architectures=None if shared else len(selection))
        gradient = cotangents(cell, selection)
        together = evaluate(on_device(run(cell, selection), device), inputs, gradient)
        for a, chosen in enumerate(selection):
            own = inputs if shared else {**inputs, "input": inputs["input"][a]}
            alone = evaluate(
                on_device(run(cell, chosen), device), own, {"output": gradient["output"][a]}
            )
            compared = ["output", "edge means", "edge variances", "output statistics"]
            for name in compared if shared else [*compared, "gradient of input"]:
                all_of, result = together[name], alone[name]
                assert all_of is not None
                assert result is not None
                assert_bitwise(f"{name}[{a}]", all_of[a], result, nonzero=0.0)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dense_grad", [True, False])
def test_gradients_are_summed_in_order(dense_grad: bool, wide: bool, device: torch.device) -> None:
    cell = replace(WIDE["projection"] if wide else CELLS["projection"], dense_grad=dense_grad)
    selection = select([HAND_PICKED["everything"]] * 5, seed=2)
    inputs, gradient = cell.inputs(), cotangents(cell, selection)
    together = evaluate(on_device(run(cell, selection), device), inputs, gradient)
    compact = replace(cell, dense_grad=False)
    singles = [
        evaluate(on_device(run(compact, chosen), device), inputs, {"output": gradient["output"][a]})
        for a, chosen in enumerate(selection)
    ]
    for name, result in together.items():
        if not name.startswith("gradient"):
            continue
        totals = [single[name] for single in singles]
        present = [total.to_dense() for total in totals if total is not None]
        if not present:
            assert result is None or not result.any()
            continue
        in_order = torch.zeros_like(present[0])
        for total in present:
            in_order += total
        assert result is not None
        assert result.is_sparse == (not dense_grad and name != "gradient of input")
        assert_bitwise(name, result.to_dense(), in_order)


@pytest.mark.parametrize("channels", [5, 16])
def test_results_repeat_bit_for_bit(channels: int, device: torch.device, threads: int) -> None:
    cell = Cell(channels=channels, images=4, height=9, width=11)
    selection = select(sample(3, seed=5), seed=5)
    inputs, gradient = cell.inputs(), cotangents(cell, selection)
    first = evaluate(on_device(run(cell, selection), device), inputs, gradient)
    for _ in range(3):
        for name, result in evaluate(
            on_device(run(cell, selection), device), inputs, gradient
        ).items():
            expected = first[name]
            assert (result is None) == (expected is None)
            if result is not None and expected is not None:
                assert torch.equal(result.to_dense(), expected.to_dense()), name
