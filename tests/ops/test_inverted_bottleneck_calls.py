"""inverted_bottleneck as an operation of torch: autograd, layouts, checks of torch, bad input."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.ops.backend import Backend
from cwkernels.ops.inverted_bottleneck import statistics_slice
from cwkernels.testing import (
    as_reference,
    assert_as_close,
    assert_bitwise,
    assert_within,
    cast,
    dense_random,
    evaluate,
    expect,
    refused,
)
from cwkernels.testing.cases.inverted_bottleneck import (
    IDENTITY,
    K3_E3,
    K5_E6,
    Layer,
    chain,
    cotangents,
    run,
    stock,
)

OPERATION = "inverted_bottleneck"
BACKENDS = pytest.mark.parametrize("backend", ["kernels", "reference"])
CODES = pytest.mark.parametrize("code", [IDENTITY, K3_E3, K5_E6])
LAYERS = pytest.mark.parametrize("layer", [Layer(), Layer(5, 6, stride=2)], ids=["s1", "s2"])


@CODES
@LAYERS
@pytest.mark.parametrize("several", [True, False])
def test_nchw_images_give_channels_last_results(layer: Layer, code: int, several: bool) -> None:
    selection = torch.tensor([[code, 2]] * 2)[slice(None) if several else 0]
    inputs = {name: tensor.contiguous() for name, tensor in layer.inputs().items()}
    gradient = {"output": cotangents(layer, selection)["output"].contiguous()}
    results = evaluate(run(layer, selection), inputs, gradient)
    expected = expect(stock(layer, selection), inputs, gradient)
    assert_as_close(results, expected, terms={"": 2 * 3 * 6 * 7})
    output = results["output"]
    assert output is not None
    assert output.movedim(-3, -1).is_contiguous()


@LAYERS
def test_views_and_expanded_tensors(layer: Layer) -> None:
    selection = torch.tensor([[K5_E6, 2], [K3_E3, 0], [IDENTITY, 2]])
    channels = layer.in_channels
    larger = torch.full((3, 3, 6, 7, channels + 6), torch.nan)
    images = larger.movedim(-1, 2)[:, :, 3 : 3 + channels]
    images.copy_(dense_random(3, 3, channels, 6, 7))
    _, *shape = layer.output_shape
    gradient = {"output": dense_random(*shape, seed=1).expand(3, 3, *shape)}
    inputs = {**layer.inputs(), "input": images}
    results = evaluate(run(layer, selection), inputs, gradient)
    expected = expect(stock(layer, selection), inputs, gradient)
    assert_as_close(results, expected, terms={"": 3 * 3 * 6 * 7})


@pytest.mark.filterwarnings("ignore:var_mean")
@BACKENDS
@LAYERS
@pytest.mark.parametrize("training", [True, False])
def test_no_images(layer: Layer, training: bool, backend: Backend) -> None:
    layer = Layer(layer.in_channels, layer.out_channels, layer.stride, training=training, images=0)
    selection = torch.tensor([[K5_E6, 2], [K3_E3, 0], [IDENTITY, 2]])
    function = run(layer, selection)
    function = as_reference(function) if backend == "reference" else function
    results = evaluate(function, layer.inputs(), cotangents(layer, selection))
    output, image_gradient = results["output"], results["gradient of input"]
    assert output is not None
    assert output.shape == (3, *layer.output_shape)
    assert image_gradient is not None
    for group in ("weights", "scales", "shifts"):
        gradient = results[f"gradient of {group}[1]"]
        assert gradient is not None
        assert not gradient.to_dense().any()


@BACKENDS
@CODES
def test_layout_of_the_statistics(code: int, backend: Backend) -> None:
    layer = Layer(4, 5, expansions=(3, 6))
    tensors = layer.inputs()
    weights, scales, shifts = layer.banks(tensors)
    slices = {
        0: (0, 12),
        1: (24, 36),
        2: (48, 53),
        3: (0, 24),
        4: (24, 48),
        5: (48, 53),
        6: (48, 53),
    }
    for bank, bounds in slices.items():
        assert statistics_slice(weights, bank) == slice(*bounds)
    with ops.backend(backend):
        _, statistics = ops.inverted_bottleneck(
            tensors["input"],
            torch.tensor([code, 2]),
            weights,
            scales,
            shifts,
            *layer.running(),
            training=True,
        )
    measured = torch.zeros(53, dtype=torch.bool)
    for bank in chain(code, layer):
        measured[slice(*slices[bank])] = True
    assert statistics.shape == (2, 53)
    assert torch.equal(statistics[1] != 0, measured)


@BACKENDS
@LAYERS
@pytest.mark.usefixtures("poisoned")
def test_evaluation_measures_nothing(layer: Layer, backend: Backend) -> None:
    tensors = layer.inputs()
    weights, scales, shifts = layer.banks(tensors)
    running_mean, running_var = layer.running()
    with ops.backend(backend):
        _, statistics = ops.inverted_bottleneck(
            tensors["input"],
            torch.tensor([[K5_E6, 2], [IDENTITY, 0]]),
            weights,
            scales,
            shifts,
            running_mean,
            running_var,
            stride=layer.stride,
            training=False,
        )
    assert statistics.shape == (2, 2, 2 * 6 * layer.in_channels + layer.out_channels)
    assert not statistics.any()


@CODES
@BACKENDS
@LAYERS
def test_only_what_is_read_gets_a_gradient(layer: Layer, code: int, backend: Backend) -> None:
    selection = torch.tensor([[code, 2], [code, 1]])
    function = run(layer, selection)
    function = as_reference(function) if backend == "reference" else function
    results = evaluate(function, layer.inputs(), cotangents(layer, selection))
    for group in ("weights", "scales", "shifts"):
        for bank in range(len(layer.weight_shapes)):
            gradient = results[f"gradient of {group}[{bank}]"]
            assert (gradient is not None) == (bank in chain(code, layer))
            if gradient is not None:
                assert gradient.coalesce().indices()[0].tolist() == [1, 2]


def test_accumulates_over_batches() -> None:
    layer, selections = Layer(5, 6, stride=2), torch.tensor([[K5_E6, 2], [K5_E6, 0], [K5_E6, 2]])
    inputs = {name: tensor.requires_grad_() for name, tensor in layer.inputs().items()}
    total: dict[str, Tensor] = {}
    for seed, selection in enumerate(selections):
        gradient = {"output": dense_random(*layer.output_shape, seed=seed)}
        run(layer, selection)(inputs)["output"].backward(gradient["output"])
        for name, own in evaluate(run(layer, selection), inputs, gradient).items():
            if own is not None and name.startswith("gradient"):
                dense = own.to_dense()
                total[name] = total[name] + dense if name in total else dense
    for name, tensor in inputs.items():
        expected = total.get(f"gradient of {name}")
        assert (tensor.grad is None) == (expected is None)
        if tensor.grad is not None and expected is not None:
            assert_bitwise(name, tensor.grad.to_dense(), expected)


@BACKENDS
@pytest.mark.parametrize("group", ["input", "weights[1]", "scales[0]", "shifts[2]"])
def test_what_is_frozen_gets_no_gradient(group: str, backend: Backend) -> None:
    layer, selection = Layer(), torch.tensor([K3_E3, 1])
    inputs, gradient = layer.inputs(), cotangents(layer, selection)["output"]
    full = evaluate(run(layer, selection), inputs, {"output": gradient})
    only = {**inputs, group: inputs[group].detach().requires_grad_()}
    with ops.backend(backend):
        run(layer, selection)(only)["output"].backward(gradient)
    grads = {name: tensor.grad for name, tensor in only.items() if tensor.grad is not None}
    assert grads.keys() == {group}
    expected = full[f"gradient of {group}"]
    assert expected is not None
    assert_within("float32 network", group, grads[group].to_dense(), expected.to_dense())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("channels", [4, 48])
def test_no_gradient_is_recorded_in(
    mode: type[torch.no_grad], training: bool, channels: int, device: torch.device
) -> None:
    # Bit for bit the same, however the sums are cut where the hidden tensors are not written.
    layer, selection = Layer(channels, channels, training=training), torch.tensor([K5_E6, 1])
    inputs = {name: tensor.requires_grad_() for name, tensor in layer.inputs().items()}
    with mode():
        quiet = run(layer, selection)(inputs)["output"]
    assert not quiet.requires_grad
    assert_bitwise("output", quiet, run(layer, selection)(inputs)["output"])


@BACKENDS
@pytest.mark.parametrize("group", ["weights", "scales"])
def test_a_loss_older_than_a_change_of_a_bank_is_refused(group: str, backend: Backend) -> None:
    layer, selection = Layer(), torch.tensor([K3_E3, 1])
    inputs = {name: tensor.requires_grad_() for name, tensor in layer.inputs().items()}
    with ops.backend(backend):
        output = run(layer, selection)(inputs)["output"]
    with torch.no_grad():
        inputs[f"{group}[1]"] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_loss_older_than_a_change_of_any_bank_is_refused() -> None:
    layer, selection = Layer(5, 6, stride=2), torch.tensor([K3_E3, 1])
    for name in layer.inputs():
        inputs = {key: tensor.requires_grad_() for key, tensor in layer.inputs().items()}
        output = run(layer, selection)(inputs)["output"]
        with torch.no_grad():
            inputs[name] += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride: int, training: bool, recompute: bool) -> None:
    layer = Layer(
        2,
        2,
        stride,
        expansions=(1, 2),
        training=training,
        recompute=recompute,
        dense_grad=True,
        sets=2,
        images=2,
        height=3,
        width=4,
    )
    selection = torch.tensor([[K5_E6, 1], [K3_E3, 0], [IDENTITY, 1], [K5_E6, 1]])
    inputs = cast(layer.inputs(), torch.float64)

    def function(*tensors: Tensor) -> Tensor:
        return run(layer, selection)(dict(zip(inputs, tensors, strict=True)))["output"]

    leaves = tuple(tensor.requires_grad_() for tensor in inputs.values())
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("dense_grad", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride: int, dense_grad: bool) -> None:
    layer = Layer(2, 2, stride, images=2, height=3, width=4)
    # A traced graph gives an empty compact gradient where there is none otherwise, which opcheck
    # takes for a difference: every bank is read.
    selection = torch.tensor([[K5_E6, 1], [K3_E3, 0], [IDENTITY, 1]])
    tensors = {name: tensor.requires_grad_() for name, tensor in layer.inputs().items()}
    arguments = (tensors["input"][None], selection, *layer.banks(tensors), *layer.running())
    torch.library.opcheck(
        torch.ops.cwkernels.inverted_bottleneck.default,
        (*arguments, stride, True, 1e-5, False, False, dense_grad, True),
    )


@pytest.mark.parametrize("recompute", [True, False])
def test_opcheck_of_backward(recompute: bool) -> None:
    layer = Layer(2, 2, 2, images=2, height=3, width=4)
    selection = torch.tensor([[K5_E6, 1], [IDENTITY, 1]])
    tensors = layer.inputs()
    arguments = (tensors["input"][None], selection, *layer.banks(tensors), *layer.running())
    options = (2, True, 1e-5)
    _, statistics, kept = torch.ops.cwkernels.inverted_bottleneck(
        *arguments, *options, recompute, False, False, True
    )
    gradient = cotangents(layer, selection)["output"]
    torch.library.opcheck(
        torch.ops.cwkernels.inverted_bottleneck_backward.default,
        (gradient, *arguments, statistics, kept, *options, recompute, False, True),
    )


class Call:
    """A good call, to be spoilt."""

    def __init__(self) -> None:
        layer = Layer()
        tensors = layer.inputs()
        self.input = tensors["input"]
        self.selection = torch.tensor([[K5_E6, 1], [K3_E3, 0]])
        self.weights, self.scales, self.shifts = layer.banks(tensors)
        self.running_mean, self.running_var = layer.running()
        self.stride = 1

    def run(self) -> None:
        ops.inverted_bottleneck(
            self.input,
            self.selection,
            self.weights,
            self.scales,
            self.shifts,
            self.running_mean,
            self.running_var,
            stride=self.stride,
            training=True,
        )


def spoil(attribute: str, value: object, index: int | None = None) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        if index is None:
            setattr(call, attribute, value)
        else:
            getattr(call, attribute)[index] = value

    return change


NORM_SHAPES = "[[3, 12], [3, 12], [3, 4], [3, 24], [3, 24], [3, 4]]"
BAD = {
    "selection: wanted int64 or int32 [2] or [A, 2], got torch.float32 [1, 2]": spoil(
        "selection", torch.ones(1, 2)
    ),
    "selection: wanted int64 or int32 [2] or [A, 2], got torch.int64 [3]": spoil(
        "selection", torch.tensor([1, 0, 0])
    ),
    "selection: wanted int64 or int32 [2] or [A, 2], got torch.int64 [1, 1, 2]": spoil(
        "selection", torch.tensor([[[1, 0]]])
    ),
    "selection: wanted at least one architecture, got [0, 2]": spoil(
        "selection", torch.zeros(0, 2, dtype=torch.int64)
    ),
    "selection: wanted a code in [0, 3), got 3": spoil("selection", torch.tensor([[3, 0]])),
    "selection: wanted a code in [0, 3), got -1": spoil("selection", torch.tensor([[-1, 0]])),
    "selection: wanted a row in [0, 3), got 3": spoil("selection", torch.tensor([1, 3])),
    "selection: wanted a row in [0, 3), got -1": spoil("selection", torch.tensor([1, -1])),
    "input: wanted [N, C, H, W] or [2, N, C, H, W], got [4, 6, 7]": spoil(
        "input", torch.ones(4, 6, 7)
    ),
    "input: wanted [N, C, H, W] or [2, N, C, H, W], got [3, 3, 4, 6, 7]": spoil(
        "input", torch.ones(3, 3, 4, 6, 7)
    ),
    "input: wanted 4 channels, got 5": spoil("input", torch.ones(3, 5, 6, 7)),
    "input: wanted more than one value per channel in training, got [1, 4, 1, 1]": spoil(
        "input", torch.ones(1, 4, 1, 1)
    ),
    "stride: wanted 1 or 2, got 3": spoil("stride", 3),
    "weights: wanted 7 banks, as the layer changes the shape, got 6": spoil("stride", 2),
    "weights: wanted 6 banks, or 7 in a layer that changes the shape, got 0": spoil("weights", []),
    "weights[2]: wanted torch.float32 [S, K, C / groups, R, R], got torch.float32 [3, 4]": spoil(
        "weights", torch.ones(3, 4), 2
    ),
    "weights[2]: wanted [3, 4, 12, 1, 1], got [3, 4, 11, 1, 1]": spoil(
        "weights", torch.ones(3, 4, 11, 1, 1), 2
    ),
    "weights[5]: wanted [3, 4, 24, 1, 1], got [2, 4, 24, 1, 1]": spoil(
        "weights", torch.ones(2, 4, 24, 1, 1), 5
    ),
    "weights[1]: wanted torch.float32 [S, K, C / groups, R, R], got torch.float64": spoil(
        "weights", torch.ones(3, 12, 1, 3, 3).double(), 1
    ),
    f"scales: wanted {NORM_SHAPES}, got []": spoil("scales", []),
    f"shifts: wanted {NORM_SHAPES}, got [[3, 13], [": spoil("shifts", torch.ones(3, 13), 0),
    f"running_mean: wanted {NORM_SHAPES}, got [[2, 12], [": spoil(
        "running_mean", torch.ones(2, 12), 0
    ),
    "running_var[3]: wanted torch.float32, got torch.float64": spoil(
        "running_var", torch.ones(3, 24).double(), 3
    ),
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD)
@BACKENDS
def test_bad_input_is_refused(
    message: str, change: Callable[[Call], None], backend: Backend
) -> None:
    call = Call()
    change(call)
    with ops.backend(backend), refused(ValueError, f"inverted_bottleneck: {message}"):
        call.run()
