"""nb201_cell where only the device knows the architectures: the bits that it gives by value."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.testing import (
    as_reference,
    assert_bitwise,
    cast,
    evaluate,
    on_device,
    refused,
    stored_as_bf16,
)
from cwkernels.testing.cases.nb201_cell import HAND_PICKED, Cell, cotangents, run, sample, select
from cwkernels.testing.emulated import (
    EmulatedDevice,
    emulated,
    emulated_launches,
    why_not_emulated,
)
from cwkernels.testing.functions import Results

OPERATION = "nb201_cell"
REASON = why_not_emulated(OPERATION)
pytestmark = pytest.mark.usefixtures("poisoned")
ON_GPU = pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)
ON_EMULATOR = pytest.mark.skipif(REASON is not None, reason=str(REASON))

EXTREMES = [HAND_PICKED[name] for name in ("nothing", "convolutions_3x3", "chain_of_skips")]
EXTREMES += [(1,) * 6, *(code for name, code in HAND_PICKED.items() if "fed" in name)]
SMALL = Cell(images=2, height=5, width=4)
CELLS = {
    "general": SMALL,
    "projection": replace(SMALL, projection=True),
    "evaluation": replace(SMALL, training=False),
    "pads_counted": replace(SMALL, count_include_pad=True),
    "one_column": replace(SMALL, channels=3, height=7, width=1),
    "tiles": replace(SMALL, channels=16),
    "cut_tiles": Cell(channels=16, images=2, height=17, width=19),
    "tiles_in_evaluation": replace(SMALL, channels=16, training=False),
    "tiles_with_projection": replace(SMALL, channels=32, projection=True),
    "chunks": replace(SMALL, channels=64),
}


def slots(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Which row each slot of a compact gradient is for, and the values."""
    assert gradient.is_sparse
    rows = gradient._indices()[0].cpu()
    live = rows[rows >= 0]
    assert live.unique().shape == live.shape, f"rows {rows.tolist()} are not unique"
    return rows, gradient._values().cpu()


def dense(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A bank's gradient as a whole; zeros for none."""
    if gradient is None:
        return torch.zeros_like(like)
    if not gradient.is_sparse:
        return gradient
    rows, values = slots(gradient)
    whole = torch.zeros_like(like)
    whole[rows[rows >= 0]] = values[rows >= 0]
    return whole


def assert_same(results: Results, expected: Results, inputs: dict[str, Tensor]) -> None:
    """Raises AssertionError unless all is equal bit for bit."""
    for name, wanted in expected.items():
        result = results[name]
        if name.startswith("gradient of weights"):
            like = inputs[name.removeprefix("gradient of ")]
            result, wanted = dense(result, like), dense(wanted, like)
        assert (result is None) == (wanted is None), name
        if result is not None and wanted is not None:
            assert_bitwise(name, result, wanted, nonzero=0.0)


def compare(
    cell: Cell, codes: list[tuple[int, ...]], device: torch.device, *, shared: bool = True
) -> Results:
    """By pointer and by value; returns what it gives by pointer."""
    selection = select(codes, seed=len(codes))
    inputs = cell.inputs(architectures=None if shared else len(codes))
    gradient = cotangents(cell, selection)
    expected = evaluate(on_device(run(cell, selection), device), inputs, gradient)
    results = evaluate(on_device(run(cell, selection.int()), device), inputs, gradient)
    assert_same(results, expected, inputs)
    return results


@ON_GPU
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_it_equals_by_value(cell: Cell, device: torch.device) -> None:
    """With 20 architectures, which two launches share; rows and architectures are repeated."""
    everything = HAND_PICKED["everything"]
    compare(cell, [everything], device)
    compare(cell, [everything, HAND_PICKED["nothing"], everything], device, shared=False)
    if not cell.count_include_pad and cell.height < 10 and cell.channels < 64:
        repeated = [everything] * 3 + [HAND_PICKED["convolutions_1x1"]] * 2
        compare(cell, [*EXTREMES, *sample(20 - len(EXTREMES) - 5, seed=3), *repeated], device)


@ON_GPU
@pytest.mark.parametrize("channels", [5, 16])
def test_each_architecture_alone_equals_by_value(channels: int, device: torch.device) -> None:
    cell = replace(SMALL, channels=channels, images=1, height=3)
    for codes in [*HAND_PICKED.values(), *EXTREMES, *sample(6, seed=8)]:
        compare(cell, [codes], device)


@ON_GPU
@pytest.mark.parametrize("training", [True, False])
def test_double_precision_equals_by_value(training: bool, device: torch.device) -> None:
    cell = replace(SMALL, training=training, projection=True, channels=3)
    selection = select([HAND_PICKED["everything"], *EXTREMES], seed=2)
    inputs, gradient = cast(cell.inputs(), torch.float64), cotangents(cell, selection)
    expected = evaluate(on_device(run(cell, selection), device), inputs, gradient)
    results = evaluate(on_device(run(cell, selection.int()), device), inputs, gradient)
    assert_same(results, expected, inputs)


@ON_GPU
@pytest.mark.parametrize("name", ["general", "evaluation", "tiles", "tiles_in_evaluation"])
def test_bfloat16_equals_by_value(name: str, device: torch.device) -> None:
    cell = CELLS[name]
    selection = select([HAND_PICKED["everything"], *EXTREMES], seed=2)
    inputs, gradient = stored_as_bf16(cell.inputs(), "input"), cotangents(cell, selection)
    chosen, known = (on_device(run(cell, own), device) for own in (selection.int(), selection))
    assert_same(evaluate(chosen, inputs, gradient), evaluate(known, inputs, gradient), inputs)
    with torch.no_grad():
        assert_same(evaluate(chosen, inputs, {}), evaluate(known, inputs, {}), inputs)


@ON_GPU
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [5, 16])
def test_what_keeps_nothing_equals_by_value(
    channels: int, training: bool, device: torch.device
) -> None:
    for projection in (False, True):
        cell = replace(SMALL, training=training, channels=channels, projection=projection)
        selection = select([*HAND_PICKED.values(), *sample(3, seed=5)], seed=5)
        inputs = cell.inputs()
        with torch.no_grad():
            expected = evaluate(on_device(run(cell, selection), device), inputs, {})
            results = evaluate(on_device(run(cell, selection.int()), device), inputs, {})
        assert_same(results, expected, inputs)


@ON_GPU
def test_both_precisions_equal_by_value(device: torch.device) -> None:
    for precision in ("high", "highest"):
        with ops.float32_conv_precision(precision):
            compare(CELLS["tiles"], [HAND_PICKED["convolutions_3x3"]] * 2, device)


@ON_GPU
@pytest.mark.parametrize("channels", [5, 16])
def test_a_slot_for_each_architecture(channels: int, device: torch.device) -> None:
    """The first architecture that reads a row has its sum; what holds nothing is not written."""
    cell = replace(SMALL, channels=channels)
    codes = [(2, 3, 3, 3, 3, 3), (3, 3, 3, 3, 3, 3), (3, 0, 3, 3, 3, 3)] * 6
    selection = select(codes, seed=1)
    results = evaluate(
        on_device(run(cell, selection.int()), device), cell.inputs(), cotangents(cell, selection)
    )
    for edge, size in product(range(6), range(2)):
        seen: set[int] = set()
        wanted = []
        for code, row in selection[:, edge].tolist():
            opens = code == 2 + size and row not in seen
            wanted.append(row if opens else -1)
            seen |= {row} if opens else set()
        gradient = results[f"gradient of weights[{2 * edge + size}]"]
        assert gradient is not None
        rows, values = slots(gradient)
        assert rows.tolist() == wanted
        assert torch.isnan(values[rows < 0]).all()
        assert not torch.isnan(values[rows >= 0]).any()


@ON_GPU
@pytest.mark.parametrize("channels", [5, 16])
def test_dense_gradients(channels: int, device: torch.device) -> None:
    cell = replace(SMALL, channels=channels, dense_grad=True)
    results = compare(cell, [*EXTREMES, HAND_PICKED["everything"]], device)
    gradient = results["gradient of weights[1]"]
    assert gradient is not None
    assert not gradient.is_sparse


@ON_GPU
@pytest.mark.parametrize("channels", [5, 16])
def test_what_is_out_of_range_runs_nothing(channels: int, device: torch.device) -> None:
    cell = replace(SMALL, channels=channels)
    codes = [HAND_PICKED["convolutions_3x3"]] * 6
    bad = select(codes, seed=4).int()
    good = bad.long()
    wrong = [(0, -1), (0, 5), (0, 2**31 - 1), (1, -1), (1, 3), (1, -(2**31))]
    for a, (place, value) in enumerate(wrong):
        bad[a, a, place] = value
        good[a, a] = 0
    inputs, gradient = cell.inputs(), cotangents(cell, good)
    expected = evaluate(on_device(run(cell, good), device), inputs, gradient)
    results = evaluate(on_device(run(cell, bad), device), inputs, gradient)
    assert_same(results, expected, inputs)


@ON_GPU
def test_cells_share_a_plan(device: torch.device) -> None:
    selection = select([HAND_PICKED["everything"], *sample(2, seed=6)], seed=6)
    plan = ops.nb201_plan(selection.int().to(device), [3] * 6, 2)
    for channels in (16, 5):
        cell = replace(SMALL, channels=channels)
        tensors = {name: tensor.to(device) for name, tensor in cell.inputs().items()}
        weights = cell.weights(tensors)
        results = ops.nb201_cell(tensors["input"], plan, weights, [], [], training=True)
        expected = ops.nb201_cell(tensors["input"], selection, weights, [], [], training=True)
        for name, result, wanted in zip(("output", "edges", "own"), results, expected, strict=True):
            assert_bitwise(name, result, wanted, nonzero=0.0)
        refusal = "nb201_cell: selection: wanted a plan for 2 banks an edge of [2, 2, 2, 2, 2, 2] "
        fewer = [weight[:2] for weight in weights]
        with refused(ValueError, f"{refusal}rows, got one for 2 of [3, 3, 3, 3, 3, 3]"):
            ops.nb201_cell(tensors["input"], plan, fewer, [], [], training=True)


@ON_GPU
@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("several", [True, False])
def test_no_images(several: bool, channels: int, device: torch.device) -> None:
    cell = replace(SMALL, channels=channels, images=0, training=False)
    selection = select([HAND_PICKED["everything"]] * 2).int()[slice(None) if several else 0]
    results = evaluate(
        on_device(run(cell, selection), device), cell.inputs(), cotangents(cell, selection)
    )
    output, gradient = results["output"], results["gradient of weights[1]"]
    assert output is not None
    assert output.shape == (*selection.shape[:-2], 0, channels, 5, 4)
    assert gradient is not None
    assert slots(gradient)[0].tolist() == [-1] * (2 if several else 1)


@ON_GPU
@pytest.mark.parametrize("per_edge", [2, 3])
def test_places_suffice_for_every_cell(per_edge: int, device: torch.device) -> None:
    """What a cell stores has places of its own: 8 kept, 6 or 2 of scratch, as many as needed."""
    every = torch.tensor(list(product(range(5), repeat=6)), dtype=torch.int32)
    bounds, most = (8, 6, 2), [0, 0, 0]
    for codes in every.split(125):
        selection = torch.stack([codes, torch.zeros_like(codes)], dim=-1).to(device)
        table = ops.nb201_plan(selection, [1] * 6, per_edge).table
        assert table is not None
        for a, words in enumerate(table.cpu().unflatten(1, (3, 29)).tolist()):
            for mode, own in enumerate(words):
                # Below: the raw output of each edge, then the nodes.
                places = [place for place in (*own[2:24:4], *own[25:]) if place != -1]
                begin = a * 8 if mode == 0 else a % 16 * bounds[mode]
                used = [place - begin if mode == 0 else -2 - place - begin for place in places]
                assert used == list(range(len(used)))
                most[mode] = max(most[mode], len(used))
    assert tuple(most) == bounds


@ON_EMULATOR
@pytest.mark.parametrize("channels", [5, 16])
def test_launches_do_not_depend_on_the_choice(channels: int) -> None:
    """The plan, 4 forward and 4 backward; 3 in evaluation, and 3 + 3 if something is kept then."""

    def launches(cell: Cell, codes: list[tuple[int, ...]], *, backward: bool) -> int:
        selection = select(codes).int()
        gradient = cotangents(cell, selection) if backward else {}
        with emulated(), torch.set_grad_enabled(backward):
            evaluate(run(cell, selection), cell.inputs(), gradient)
            return emulated_launches()

    training = replace(SMALL, channels=channels)
    evaluation = replace(training, training=False)
    for codes in (*EXTREMES[:3], HAND_PICKED["everything"]):
        assert launches(training, [codes], backward=False) == 1 + 4
        assert launches(training, [codes] * 3, backward=True) == 1 + 4 + 4
        assert launches(evaluation, [codes], backward=False) == 1 + 3
        assert launches(evaluation, [codes] * 3, backward=True) == 1 + 4 + 3
    assert launches(training, [EXTREMES[0]] * 20, backward=True) == 1 + 2 * (4 + 4)


@ON_EMULATOR
@pytest.mark.parametrize("channels", [5, 16])
def test_any_schedule_equals_by_value(channels: int) -> None:
    """With more than 16 blocks an architecture, two groups of partial results."""
    cell = Cell(channels=channels, images=17, height=16, width=16 if channels == 16 else 3)
    selection = select([HAND_PICKED["everything"]])
    inputs, gradient = cell.inputs(), cotangents(cell, selection)
    with emulated(EmulatedDevice(capability=90, processors=60, seed=0)):
        expected = evaluate(run(cell, selection), inputs, gradient)
    for seed in (1, 2):
        with emulated(EmulatedDevice(capability=90, processors=60, seed=seed)):
            results = evaluate(run(cell, selection.int()), inputs, gradient)
        assert_same(results, expected, inputs)


@ON_EMULATOR
def test_launches_for_few_architectures_equal_by_value() -> None:
    """Partial results of weights for six architectures fill the workspace: two launches' worth."""
    cell = Cell(channels=64, images=10, height=8, width=8)
    with emulated(EmulatedDevice(capability=90, processors=60)):
        compare(cell, [(0, 0, 0, 2, 0, 0)] * 8, torch.device("cpu"))
        assert emulated_launches() == (2 + 2 * 2) + (1 + 4 + 2 * 4)


def test_the_reference_reads_the_choice() -> None:
    cell = replace(SMALL, dense_grad=True)
    selection = select([*EXTREMES, HAND_PICKED["everything"]], seed=2)
    inputs, gradient = cell.inputs(), cotangents(cell, selection)
    expected = evaluate(as_reference(run(cell, selection)), inputs, gradient)
    chosen = selection.int()
    chosen[0, 0] = torch.tensor([7, 9])
    results = evaluate(as_reference(run(cell, chosen)), inputs, gradient)
    assert_same(results, expected, inputs)
    with ops.backend("reference"):
        plan = ops.nb201_plan(chosen, [3] * 6, 2)
        outputs = ops.nb201_cell(inputs["input"], plan, cell.weights(inputs), [], [], training=True)
    output = expected["output"]
    assert output is not None
    assert_bitwise("output", outputs[0], output)


def test_kernels_of_the_cpu_refuse_it() -> None:
    cell, selection = SMALL, select([HAND_PICKED["everything"]]).int()
    message = "nb201_plan: selection: wanted a tensor on a GPU, whose kernels read plans, got one"
    with refused(RuntimeError, message):
        run(cell, selection)(cell.inputs())
    plan = torch.zeros(1, 87, dtype=torch.int32)
    tensors = cell.inputs()
    running: list[Tensor] = []
    arguments = (tensors["input"][None], plan, cell.weights(tensors), running, running)
    message = "selection: wanted int64 [A, 6, 2] for tensors of the CPU, whose kernels read no plan"
    options = (True, False, 1e-5, True)
    with refused(RuntimeError, f"nb201_cell: {message}"):
        torch.ops.cwkernels.nb201_cell(*arguments, *options, False, True)
    saved = (torch.zeros(1, 6, 2, cell.channels), torch.zeros(8, 2, cell.channels, 5, 4))
    with refused(RuntimeError, f"nb201_cell_backward: {message}"):
        torch.ops.cwkernels.nb201_cell_backward(
            tensors["input"][None], *arguments, *saved, *options, True
        )


BAD = {
    "selection: wanted int32 [6, 2] or [A, 6, 2], got torch.int64 [6, 2]": {
        "selection": torch.zeros(6, 2, dtype=torch.int64)
    },
    "selection: wanted int32 [6, 2] or [A, 6, 2], got torch.int32 [2, 6]": {
        "selection": torch.zeros(2, 6, dtype=torch.int32)
    },
    "selection: wanted at least one architecture, got [0, 6, 2]": {
        "selection": torch.zeros(0, 6, 2, dtype=torch.int32)
    },
    "rows: wanted one for each of 6 edges, got [1, 2]": {"rows": [1, 2]},
    "per_edge: wanted 2 or 3, got 4": {"per_edge": 4},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD)
def test_a_bad_plan_is_refused(message: str, change: dict[str, object]) -> None:
    good = {"selection": torch.zeros(6, 2, dtype=torch.int32), "rows": [1] * 6, "per_edge": 2}
    with refused(ValueError, f"nb201_plan: {message}"):
        ops.nb201_plan(**{**good, **change})  # type: ignore[arg-type]


@ON_GPU
def test_opcheck(device: torch.device) -> None:
    cell = replace(SMALL, height=3)
    # All that is kept is written.
    selection = select([(2,) * 6, (3,) * 6]).int().to(device)
    tensors = {name: own.to(device).requires_grad_() for name, own in cell.inputs().items()}
    library = torch.ops.cwkernels
    torch.library.opcheck(library.nb201_plan.default, (selection, [3] * 6, 2))
    plan = library.nb201_plan(selection, [3] * 6, 2)
    running: list[Tensor] = []
    arguments = (tensors["input"][None], plan, cell.weights(tensors), running, running)
    options = (True, False, 1e-5, True)
    torch.library.opcheck(library.nb201_cell.default, (*arguments, *options, True, True))
    _, statistics, _, kept = library.nb201_cell(*arguments, *options, True, True)
    gradient = cotangents(cell, selection)["output"].to(device)
    torch.library.opcheck(
        library.nb201_cell_backward.default,
        (gradient, *arguments, statistics, kept, *options, True),
        # The others compare what no kernel writes.
        test_utils=("test_schema", "test_faketensor"),
    )
