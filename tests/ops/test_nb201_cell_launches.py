"""nb201_cell's CUDA kernels on the emulator: how many launches, in any order of their blocks."""

import pytest
import torch

from cwkernels import ops
from cwkernels.testing import assert_as_close, assert_bitwise, evaluate, expect
from cwkernels.testing.cases.nb201_cell import (
    HAND_PICKED,
    Cell,
    cotangents,
    run,
    sample,
    select,
    stock,
)
from cwkernels.testing.emulated import (
    EmulatedDevice,
    emulated,
    emulated_launches,
    why_not_emulated,
)

OPERATION = "nb201_cell"
REASON = why_not_emulated(OPERATION)
pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
SIZES = {
    "general": Cell(images=3, height=16, width=16),
    "tiles": Cell(channels=16, images=5, height=32, width=32),
}


def launches(cell: Cell, codes: list[tuple[int, ...]], *, backward: bool = True) -> int:
    selection = select(codes)
    gradient = cotangents(cell, selection) if backward else {}
    with emulated(), torch.set_grad_enabled(backward):
        if backward:
            evaluate(run(cell, selection), cell.inputs(), gradient)
        else:
            run(cell, selection)(cell.inputs())
        return emulated_launches()


@pytest.mark.parametrize("channels", [5, 16])
def test_a_cell_is_four_launches_each_way(channels: int) -> None:
    cell = Cell(channels=channels)
    for name in ("convolutions_3x3", "everything"):
        assert launches(cell, [HAND_PICKED[name]], backward=False) == 4
        assert launches(cell, [HAND_PICKED[name]]) == 8
    assert launches(cell, sample(16, seed=1)) == 8


@pytest.mark.parametrize("channels", [5, 16])
def test_dead_work_is_not_launched(channels: int) -> None:
    cell = Cell(channels=channels)
    # The output; the input's gradient.
    assert launches(cell, [HAND_PICKED["lone_skip"]]) == 2
    # The convolution, the output; the sums of its batch norm, both gradients.
    assert launches(cell, [HAND_PICKED["lone_convolution"]]) == 4


@pytest.mark.parametrize("channels", [5, 16])
def test_evaluation_is_a_launch_for_each_node_that_an_edge_leaves(channels: int) -> None:
    cell = Cell(channels=channels, training=False)
    for name, count in (("everything", 3), ("lone_skip", 1), ("nothing", 1)):
        assert launches(cell, [HAND_PICKED[name]], backward=False) == count


@pytest.mark.parametrize("cell", SIZES.values(), ids=SIZES)
def test_any_schedule_gives_the_same(cell: Cell) -> None:
    """On 60 processors there are more than 16 blocks, two groups of partial results, of each."""
    selection = select([HAND_PICKED["everything"]] * 2, seed=3)
    inputs, gradient = cell.inputs(), cotangents(cell, selection)
    results = []
    with ops.float32_conv_precision("highest"):
        for seed in range(3):
            with emulated(EmulatedDevice(capability=90, processors=60, seed=seed)):
                results.append(evaluate(run(cell, selection), inputs, gradient))
    expected = expect(stock(cell, selection), inputs, gradient)
    terms = {"": 2 * cell.images * cell.height * cell.width}
    assert_as_close(results[0], expected, terms=terms)
    for other in results[1:]:
        for name, one in results[0].items():
            again = other[name]
            assert (one is None) == (again is None)
            if one is not None and again is not None:
                assert_bitwise(name, again.to_dense(), one.to_dense(), nonzero=0.0)
