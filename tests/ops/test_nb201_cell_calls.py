"""nb201_cell as an operation of torch: autograd, layouts, checks of torch, bad input."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.ops.backend import Backend
from cwkernels.testing import (
    as_reference,
    assert_as_close,
    assert_bitwise,
    assert_within,
    cast,
    dense_random,
    evaluate,
    expect,
    on_device,
    refused,
)
from cwkernels.testing.cases.nb201_cell import (
    CHANNELS,
    HAND_PICKED,
    SETS,
    Cell,
    cotangents,
    run,
    sample,
    select,
    stock,
)

OPERATION = "nb201_cell"
BACKENDS = pytest.mark.parametrize("backend", ["kernels", "reference"])
EVERYTHING = HAND_PICKED["everything"]
TERMS = {"": 5 * 3 * 6 * 7}
NONZERO = {"edge means": 0.01, "edge variances": 0.01}


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("codes", HAND_PICKED.values(), ids=HAND_PICKED)
def test_nchw_images_give_channels_last_results(codes: tuple[int, ...], several: bool) -> None:
    cell, selection = Cell(), select([codes, codes])[slice(None) if several else 0]
    inputs = {name: tensor.contiguous() for name, tensor in cell.inputs().items()}
    gradient = {name: tensor.contiguous() for name, tensor in cotangents(cell, selection).items()}
    results = evaluate(run(cell, selection), inputs, gradient)
    expected = expect(stock(cell, selection), inputs, gradient)
    assert_as_close(results, expected, terms=TERMS, nonzero=NONZERO)
    output = results["output"]
    assert output is not None
    assert output.movedim(-3, -1).is_contiguous()


def test_views_and_expanded_tensors(device: torch.device) -> None:
    cell, selection = Cell(), select(sample(4, seed=9), seed=9)
    larger = torch.full((4, 5, 6, 7, 11), torch.nan)
    image = larger.movedim(-1, 2)[:, 1:2, 3:8].copy_(dense_random(4, 1, 5, 6, 7))
    inputs = {**cell.inputs(), "input": image.expand(4, 3, 5, 6, 7)}
    gradient = {"output": dense_random(5, 6, 7, seed=1).expand(4, 3, 5, 6, 7)}
    results = evaluate(on_device(run(cell, selection), device), inputs, gradient)
    expected = expect(stock(cell, selection), inputs, gradient)
    assert_as_close(results, expected, terms=TERMS, nonzero=NONZERO)


@pytest.mark.filterwarnings("ignore:var_mean")
@BACKENDS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_no_images(training: bool, several: bool, backend: Backend, device: torch.device) -> None:
    cell = Cell(training=training, images=0)
    selection = select([EVERYTHING, EVERYTHING])[slice(None) if several else 0]
    function = on_device(run(cell, selection), device)
    function = as_reference(function) if backend == "reference" else function
    results = evaluate(function, cell.inputs(), cotangents(cell, selection))
    output, gradient = results["output"], results["gradient of weights[1]"]
    assert output is not None
    assert output.shape == (*selection.shape[:-2], 0, CHANNELS, 6, 7)
    assert gradient is not None
    assert not gradient.to_dense().any()


def test_accumulates_over_batches(device: torch.device) -> None:
    cell, selections = Cell(), select([EVERYTHING, EVERYTHING], seed=4)
    inputs = {name: tensor.requires_grad_() for name, tensor in cell.inputs().items()}
    total: dict[str, Tensor] = {}
    for seed, selection in enumerate(selections):
        function = on_device(run(cell, selection), device)
        gradient = dense_random(3, CHANNELS, 6, 7, seed=seed)
        function(inputs)["output"].backward(gradient)
        for name, own in evaluate(function, inputs, {"output": gradient}).items():
            if own is not None and name.startswith("gradient"):
                dense = own.to_dense()
                total[name] = total[name] + dense if name in total else dense
    for name, tensor in inputs.items():
        expected = total.get(f"gradient of {name}")
        assert (tensor.grad is None) == (expected is None)
        if tensor.grad is not None and expected is not None:
            assert_bitwise(name, tensor.grad.to_dense(), expected)


@BACKENDS
def test_what_is_frozen_gets_no_gradient(backend: Backend) -> None:
    cell, selection = Cell(), select([EVERYTHING])[0]
    inputs, gradient = cell.inputs(), cotangents(cell, selection)["output"]
    full = evaluate(run(cell, selection), inputs, {"output": gradient})
    image = inputs["input"].detach().requires_grad_()
    with ops.backend(backend):
        run(cell, selection)({**inputs, "input": image})["output"].backward(gradient)
    expected = full["gradient of input"]
    assert image.grad is not None
    assert expected is not None
    assert_within("float32 network", "gradient of input", image.grad, expected)
    only = {**inputs, "weights[1]": inputs["weights[1]"].detach().requires_grad_()}
    with ops.backend(backend):
        run(cell, selection)(only)["output"].backward(gradient)
    grads = {name: tensor.grad for name, tensor in only.items() if tensor.grad is not None}
    assert grads.keys() == {"weights[1]"}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_recorded_in(mode: type[torch.no_grad]) -> None:
    cell, selection = Cell(), select([EVERYTHING])[0]
    inputs = {name: tensor.requires_grad_() for name, tensor in cell.inputs().items()}
    with mode():
        quiet = run(cell, selection)(inputs)
    for name, result in run(cell, selection)(inputs).items():
        assert not quiet[name].requires_grad
        assert_bitwise(name, quiet[name], result, nonzero=0.01)
        assert result.requires_grad == (name == "output")


@BACKENDS
def test_a_loss_older_than_a_change_of_a_bank_is_refused(backend: Backend) -> None:
    cell, selection = Cell(), select([EVERYTHING])[0]
    inputs = {name: tensor.requires_grad_() for name, tensor in cell.inputs().items()}
    with ops.backend(backend):
        output = run(cell, selection)(inputs)["output"]
    with torch.no_grad():
        inputs["weights[1]"] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_may_change_before_backward_only_in_training(training: bool) -> None:
    cell, selection = Cell(training=training), select([EVERYTHING])[0]
    tensors = cell.inputs()
    running_mean, running_var = cell.running()
    output, _, _ = ops.nb201_cell(
        tensors["input"].requires_grad_(),
        selection,
        cell.weights(tensors),
        running_mean,
        running_var,
        training=training,
    )
    for tensor in running_mean:
        tensor += 1
    if training:
        output.sum().backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("projection", [True, False])
def test_gradcheck(training: bool, projection: bool, device: torch.device) -> None:
    cell = Cell(
        training=training,
        projection=projection,
        dense_grad=True,
        channels=2,
        images=2,
        height=3,
        width=2,
    )
    selection = select([EVERYTHING, HAND_PICKED["skip_beside_a_convolution"]], seed=6)
    inputs = cast(cell.inputs(), torch.float64)

    def function(*tensors: Tensor) -> Tensor:
        named = dict(zip(inputs, tensors, strict=True))
        return on_device(run(cell, selection), device)(named)["output"]

    leaves = tuple(tensor.requires_grad_() for tensor in inputs.values())
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("dense_grad", [True, False])
def test_opcheck(dense_grad: bool) -> None:
    cell = Cell(images=2, height=3, width=4)
    # A traced graph gives an empty compact gradient where there is none otherwise, which opcheck
    # takes for a difference: in its case every bank is read.
    codes = [EVERYTHING, HAND_PICKED["reaches_no_output"]] if dense_grad else [(2,) * 6, (3,) * 6]
    tensors = {name: tensor.requires_grad_() for name, tensor in cell.inputs().items()}
    images, selection, weights = tensors["input"][None], select(codes), cell.weights(tensors)
    torch.library.opcheck(
        torch.ops.cwkernels.nb201_cell.default,
        (images, selection, weights, *cell.running(), True, False, 1e-5, True, dense_grad, True),
    )


def test_opcheck_of_backward() -> None:
    cell = Cell(images=2, height=3, width=4)
    selection = select([EVERYTHING, HAND_PICKED["reaches_no_output"]])
    tensors = cell.inputs()
    arguments = (tensors["input"][None], selection, cell.weights(tensors), *cell.running())
    options = (True, False, 1e-5, True)
    _, statistics, _, *saved = torch.ops.cwkernels.nb201_cell(*arguments, *options, True, True)
    gradient = cotangents(cell, selection)["output"]
    torch.library.opcheck(
        torch.ops.cwkernels.nb201_cell_backward.default,
        (gradient, *arguments, statistics, *saved, *options, True),
    )


class Call:
    """A good call, to be spoilt."""

    def __init__(self) -> None:
        cell = Cell()
        tensors = cell.inputs()
        self.input = tensors["input"]
        self.selection = select([EVERYTHING, EVERYTHING])
        self.weights = cell.weights(tensors)
        self.running_mean, self.running_var = cell.running()
        self.training = True

    def run(self) -> None:
        ops.nb201_cell(
            self.input,
            self.selection,
            self.weights,
            self.running_mean,
            self.running_var,
            training=self.training,
        )


def spoil(attribute: str, value: object, index: int | None = None) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        if index is None:
            setattr(call, attribute, value)
        else:
            getattr(call, attribute)[index] = value

    return change


GOOD = select([EVERYTHING, EVERYTHING])
BAD = {
    "selection: wanted int64 or int32 [6, 2] or [A, 6, 2], got torch.float32 [2, 6, 2]": spoil(
        "selection", GOOD.float()
    ),
    "selection: wanted int64 or int32 [6, 2] or [A, 6, 2], got torch.int64 [6, 3]": spoil(
        "selection", torch.zeros(6, 3, dtype=torch.int64)
    ),
    "selection: wanted int64 or int32 [6, 2] or [A, 6, 2], got torch.int64 [1, 2, 6, 2]": spoil(
        "selection", GOOD[None]
    ),
    "selection: wanted at least one architecture, got [0, 6, 2]": spoil("selection", GOOD[:0]),
    "selection[2]: wanted a code in [0, 5), got 5": spoil(
        "selection", GOOD[0].index_put((torch.tensor(2), torch.tensor(0)), torch.tensor(5))
    ),
    "selection[2]: wanted a code in [0, 5), got -1": spoil(
        "selection", GOOD[0].index_put((torch.tensor(2), torch.tensor(0)), torch.tensor(-1))
    ),
    "selection[5]: wanted a row in [0, 3), got 3": spoil(
        "selection", GOOD[0].index_put((torch.tensor(5), torch.tensor(1)), torch.tensor(3))
    ),
    "selection[5]: wanted a row in [0, 3), got -1": spoil(
        "selection", GOOD[0].index_put((torch.tensor(5), torch.tensor(1)), torch.tensor(-1))
    ),
    "input: wanted [N, C, H, W] or [2, N, C, H, W], got [5, 6, 7]": spoil(
        "input", torch.ones(5, 6, 7)
    ),
    "input: wanted [N, C, H, W] or [2, N, C, H, W], got [3, 3, 5, 6, 7]": spoil(
        "input", torch.ones(3, 3, 5, 6, 7)
    ),
    "input: wanted more than one value per channel in training, got [1, 5, 1, 1]": spoil(
        "input", torch.ones(1, 5, 1, 1)
    ),
    "weights, running_mean, running_var: wanted 12 (or 18), 12, 12 tensors, got 0, 12, 12": spoil(
        "weights", []
    ),
    "weights, running_mean, running_var: wanted 12 (or 18), 12, 12 tensors, got 12, 12, 11": spoil(
        "running_var", [torch.ones(SETS, CHANNELS)] * 11
    ),
    "weights[1]: wanted torch.float32 [3, 5, 5, 3, 3], got torch.float32 [3, 5, 5, 1, 1]": spoil(
        "weights", torch.ones(3, 5, 5, 1, 1), 1
    ),
    "weights[1]: wanted torch.float32 [3, 5, 5, 3, 3], got torch.float32 [2, 5, 5, 3, 3]": spoil(
        "weights", torch.ones(2, 5, 5, 3, 3), 1
    ),
    "weights[0]: wanted torch.float32 [3, 5, 5, 1, 1], got torch.float64 [3, 5, 5, 1, 1]": spoil(
        "weights", torch.ones(3, 5, 5, 1, 1).double(), 0
    ),
    "running_mean[3]: wanted torch.float32 [3, 5], got torch.float32 [3, 6]": spoil(
        "running_mean", torch.ones(3, 6), 3
    ),
    "running_var[3]: wanted torch.float32 [3, 5], got torch.float32 [2, 5]": spoil(
        "running_var", torch.ones(2, 5), 3
    ),
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD)
@BACKENDS
def test_bad_input_is_refused(
    message: str, change: Callable[[Call], None], backend: Backend
) -> None:
    call = Call()
    change(call)
    with ops.backend(backend), refused(ValueError, f"nb201_cell: {message}"):
        call.run()


def test_images_of_each_architecture_need_architectures() -> None:
    call = Call()
    call.selection = call.selection[0]
    call.input = torch.ones(1, 3, 5, 6, 7)
    message = "nb201_cell: input: wanted [N, C, H, W], got [1, 3, 5, 6, 7]"
    with refused(ValueError, message):
        call.run()


def test_one_value_a_channel_is_enough_in_evaluation() -> None:
    call = Call()
    call.input, call.training = torch.ones(1, 5, 1, 1), False
    call.run()
