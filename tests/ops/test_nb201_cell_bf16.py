"""nb201_cell with images in bfloat16, on a GPU: what is stored is rounded, all else is float32."""

from functools import partial

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

# Few of the six edges may be convolutions.
NONZERO = {"edge means": 0.01, "edge variances": 0.01}
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
# Of so many pixels that the ReLUs which rounding flips are as many as the table expects.
CELLS = {
    "general": Cell(height=12, width=11),
    "general_in_evaluation": Cell(height=12, width=11, training=False, projection=True),
    "tiles": Cell(channels=16, height=11, width=19),
    "tiles_in_evaluation": Cell(channels=16, height=11, width=19, training=False),
    "two_vectors": Cell(channels=32, height=9, width=8, projection=True),
    "chunks": Cell(channels=64, images=2, height=8, width=7),
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
    close = partial(
        assert_as_close,
        terms={"": cell.images * cell.height * cell.width * len(CODES)},
        nonzero=NONZERO,
        precision="bf16",
        convolutions=CELL_CONVOLUTIONS,
    )
    close(results, expected, flips=2)
    with torch.no_grad():
        kept_nothing = evaluate(on_device(run(cell, selection), device), inputs, {})
    outputs = {name: result for name, result in expected.reference.items() if "grad" not in name}
    close(kept_nothing, expected._replace(reference=outputs))


class Halving(Cell):
    """Integer running means, and a standard deviation of 2 with an eps of 1."""

    def running(self, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
        mean, var = super().running(dtype)
        return [m.round() for m in mean], [torch.full_like(v, 3.0) for v in var]


@ON_GPU
@pytest.mark.parametrize("channels", [5, 16])
def test_small_integers_are_exact(channels: int, device: torch.device) -> None:
    """One convolution of 144 products, in multiples of a half: no more than 8 bits are needed."""
    cell = Halving(training=False, eps=1.0, channels=channels, images=2, dense_grad=True)
    selection = select([(0, 0, 0, 2, 0, 0), (1, 0, 1, 0, 0, 3)], seed=2)
    inputs = stored_as_bf16(cell.inputs(small_integers, architectures=2), "input")
    gradient = cast(cotangents(cell, selection, small_integers), torch.bfloat16)
    results = evaluate(on_device(run(cell, selection), device), inputs, gradient)
    exact = evaluate(stock(cell, selection), cast(inputs, torch.float64), gradient)
    read = ["weights[6]", "weights[11]"]
    for name in ("output", *(f"gradient of {name}" for name in ("input", *read))):
        result, expected = results[name], exact[name]
        assert result is not None
        assert expected is not None
        assert result.dtype == (torch.float32 if "weights" in name else torch.bfloat16)
        assert_bitwise(name, result, expected.to(result.dtype))
    with torch.no_grad():
        fused = on_device(run(cell, selection), device)(inputs)["output"]
    assert results["output"] is not None
    assert_bitwise("output", fused, results["output"])


@pytest.mark.parametrize("device", ["emulated"], indirect=True)
@pytest.mark.parametrize("channels", [5, 16])
def test_what_is_stored_is_rounded_once(channels: int, device: torch.device) -> None:
    """Where only results are stored, they are those of TF32, rounded; gradients of banks not."""
    cell = Cell(training=False, channels=channels, images=2, dense_grad=True)
    selection = select([HAND_PICKED[name] for name in ("lone_convolution", "lone_pool")])
    inputs = stored_as_bf16(cell.inputs(architectures=2), "input")
    gradient = cast(cotangents(cell, selection), torch.bfloat16)
    function, wide = on_device(run(cell, selection), device), cast(inputs, torch.float32)
    with ops.float32_conv_precision("high"):
        expected = evaluate(function, wide, gradient)
        with torch.no_grad():
            output = function(wide)["output"]
    results = evaluate(function, inputs, gradient)
    with torch.no_grad():
        assert_bitwise("output", function(inputs)["output"], output.bfloat16())
    for name in ("gradient of input", "gradient of weights[7]"):
        result, wanted = results[name], expected[name]
        assert result is not None
        assert wanted is not None
        assert_bitwise(name, result, wanted.to(result.dtype), nonzero=0.05)


@ON_GPU
def test_autocast_stores_images_as_bfloat16(device: torch.device) -> None:
    """As stock convolutions do: inside, float32 images give what they give as bfloat16."""
    cell = Cell(channels=16, images=2, training=False)
    selection, inputs = select(CODES, seed=1), cell.inputs()
    function = on_device(run(cell, selection), device)
    wanted = function(stored_as_bf16(inputs, "input"))["output"]
    with torch.autocast(device.type, torch.bfloat16):
        result = function(inputs)["output"]
    assert result.dtype == torch.bfloat16
    assert_bitwise("output", result, wanted)
    with (
        torch.autocast(device.type, torch.float16),
        refused(ValueError, "nb201_cell: autocast: wanted torch.bfloat16, got torch.float16"),
    ):
        function(inputs)


def test_the_cpu_has_no_such_kernels() -> None:
    cell, selection = Cell(dense_grad=True), select(CODES)
    inputs, gradient = drawn(cell, selection)
    message = "nb201_cell: input: wanted float32 or float64 on the CPU, got bfloat16"
    with refused(RuntimeError, message):
        run(cell, selection)(inputs)
    results = evaluate(as_reference(run(cell, selection)), inputs, gradient)
    expected = expect(stock(cell, selection), inputs, gradient)
    terms = {"": cell.images * cell.height * cell.width * len(CODES)}
    assert_as_close(results, expected, terms=terms, nonzero=NONZERO)


@pytest.mark.parametrize("group", [0, 1])
def test_all_but_images_must_be_float32(group: int) -> None:
    cell, selection = Cell(training=False), select(CODES)
    inputs = cell.inputs()
    banks, (means, variances) = cell.weights(inputs), cell.running()
    own, name = ((banks, "weights"), (means, "running_mean"))[group]
    own[3] = own[3].bfloat16()
    wanted = f"nb201_cell: {name}[3]: wanted torch.float32 {list(own[3].shape)}, got torch.bfloat16"
    with refused(ValueError, wanted):
        images = inputs["input"].bfloat16()
        ops.nb201_cell(images, selection, banks, means, variances, training=False)


@ON_GPU
def test_opcheck(device: torch.device) -> None:
    cell, selection = Cell(images=2, height=3, width=4), select([(2,) * 6, (3,) * 6])
    inputs, gradient = drawn(cell, selection)
    options, library = (True, False, 1e-5, True), torch.ops.cwkernels
    running: list[Tensor] = []

    def arguments(requires_grad: bool) -> tuple[object, ...]:
        own = {n: t.to(device).requires_grad_(requires_grad) for n, t in inputs.items()}
        return own["input"][None], selection, cell.weights(own), running, running

    torch.library.opcheck(library.nb201_cell.default, (*arguments(True), *options, False, True))
    _, statistics, _, kept = library.nb201_cell(*arguments(False), *options, False, True)
    torch.library.opcheck(
        library.nb201_cell_backward.default,
        (gradient["output"].to(device), *arguments(False), statistics, kept, *options, True),
    )
