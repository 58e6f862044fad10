"""nb201_cell with images in bfloat16, on a GPU: what is stored is rounded, all else is float32."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cwkernels import ops
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
    refused,
    small_integers,
    stored_as_bf16,
)
from cwkernels.testing.cases.nb201_cell import HAND_PICKED, Cell, cotangents, run, select, stock

OPERATION = "nb201_cell"
pytestmark = pytest.mark.usefixtures("poisoned")
ON_GPU = pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)

CODES = [
    HAND_PICKED[name]
    for name in (
        "convolutions_3x3",
        "convolutions_1x1",
        "everything",
        "lone_pool",
        "nothing",
        "skip_beside_a_convolution",
        "two_skips_into_a_convolution",
    )
]
CELLS = {
    "general": Cell(images=2),
    "general_in_evaluation": Cell(training=False, projection=True, images=2),
    "tiles": Cell(channels=16, images=2, height=9, width=19),
    "tiles_in_evaluation": Cell(channels=16, images=2, training=False),
    "two_vectors": Cell(channels=32, images=3, height=9, width=8, projection=True),
    "chunks": Cell(channels=64, images=1, height=5, width=4),
}


def drawn(cell: Cell, selection: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and cotangents, those of images rounded to bfloat16."""
    return stored_as_bf16(cell.inputs(), "input"), cast(cotangents(cell, selection), torch.bfloat16)


@ON_GPU
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_it_is_as_close_as_stock_torch_in_bfloat16(cell: Cell, device: torch.device) -> None:
    selection = select(CODES, seed=4)
    inputs, gradient = drawn(cell, selection)
    expected = expect(stock(cell, selection), inputs, gradient)
    results = evaluate(on_device(run(cell, selection), device), inputs, gradient)
    close = {
        "terms": {"": cell.images * cell.height * cell.width * len(CODES)},
        "nonzero": {"edge means": 0.01, "edge variances": 0.01},
        "precision": "bf16",
        "convolutions": CELL_CONVOLUTIONS,
    }
    assert_as_close(results, expected, flips=2, **close)
    with torch.no_grad():
        kept_nothing = evaluate(on_device(run(cell, selection), device), inputs, {})
    outputs = {name: result for name, result in expected.reference.items() if "grad" not in name}
    assert_as_close(kept_nothing, expected._replace(reference=outputs), **close)
