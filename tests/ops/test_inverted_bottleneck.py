"""inverted_bottleneck against stock torch and torchvision: values and gradients."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from cwkernels import ops
from cwkernels.ops.precision import Precision
from cwkernels.testing import (
    Expected,
    Results,
    Tensors,
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
from cwkernels.testing.emulated import (
    EmulatedDevice,
    emulated,
    emulated_launches,
    why_not_emulated,
)

OPERATION = "inverted_bottleneck"
pytestmark = pytest.mark.usefixtures("poisoned")

LAYERS = {
    "residual": Layer(),
    "strided": Layer(5, 6, stride=2),
    "strided_same_channels": Layer(5, 5, stride=2, height=5, width=8),
    "widening": Layer(3, 7),
    "first_candidate_wider": Layer(4, 3, expansions=(6, 2)),
    "evaluation": Layer(training=False),
    "strided_evaluation": Layer(5, 6, stride=2, training=False),
    "one_row": Layer(stride=2, height=1, width=5),
    "large_eps": Layer(eps=0.5),
    "recompute": Layer(recompute=True),
    "recompute_strided": Layer(5, 6, stride=2, recompute=True),
    # On CUDA by matrix units: parts of tiles, both strides, several images in a tile.
    "multiples_of_16": Layer(16, 16, images=2, height=15, width=17),
    "multiples_of_16_strided": Layer(32, 16, stride=2, images=3, height=8, width=7),
    "multiples_of_16_evaluation": Layer(16, 32, images=5, height=4, width=4, training=False),
    "multiples_of_16_recompute": Layer(16, 16, images=2, height=5, width=18, recompute=True),
}
CODES = {"identity": IDENTITY, "k3_e3": K3_E3, "k5_e6": K5_E6}
# Rows repeat, the first and the last are among them, one is not.
FIVE = torch.tensor([[K5_E6, 2], [K3_E3, 0], [IDENTITY, 2], [K5_E6, 0], [K5_E6, 2]])


# By matrix units, several tiles and parts of them.
WIDE = {
    "training": Layer(32, 16, stride=2, images=3, height=16, width=15),
    "recompute": Layer(16, 48, stride=2, images=2, height=17, width=16, recompute=True),
    "evaluation": Layer(16, 16, images=2, height=15, width=17, training=False),
}


@pytest.fixture(autouse=True)
def highest_precision() -> Iterator[None]:
    with ops.float32_conv_precision("highest"):
        yield


def terms(layer: Layer, architectures: int) -> dict[str, int]:
    return {"": layer.images * layer.height * layer.width * architectures}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_one_architecture(layer: Layer, code: int, device: torch.device) -> None:
    selection = torch.tensor([code, 2])
    inputs, gradient = layer.inputs(), cotangents(layer, selection)
    expected = expect(stock(layer, selection), inputs, gradient)
    for function in (run(layer, selection), as_reference(run(layer, selection))):
        results = evaluate(on_device(function, device), inputs, gradient)
        assert_as_close(results, expected, terms=terms(layer, 1))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("selection", [FIVE, FIVE[:2], FIVE[2:3]], ids=["5", "2", "1"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_several_architectures(
    layer: Layer, selection: Tensor, shared: bool, device: torch.device
) -> None:
    architectures = len(selection)
    inputs = layer.inputs(architectures=None if shared else architectures)
    gradient = cotangents(layer, selection)
    results = evaluate(on_device(run(layer, selection), device), inputs, gradient)
    expected = expect(stock(layer, selection), inputs, gradient)
    assert_as_close(results, expected, terms=terms(layer, architectures))


@pytest.mark.parametrize("layer", WIDE.values(), ids=WIDE)
def test_both_precisions(layer: Layer, device: torch.device) -> None:
    inputs, gradient = layer.inputs(), cotangents(layer, FIVE)
    expected = expect(stock(layer, FIVE), inputs, gradient)
    results = {}
    for precision in get_args(Precision):
        with ops.float32_conv_precision(precision):
            results[precision] = evaluate(on_device(run(layer, FIVE), device), inputs, gradient)
        assert_as_close(
            results[precision],
            expected,
            terms=terms(layer, 5),
            precision=precision,
            # Two forward and as many back; the CPU computes both precisions alike.
            convolutions=4,
            # Two ReLUs; and sums over pixels cancel in part, as the batch norm behind takes out
            # their mean, which is worth as many again.
            flips=4 if processor() == "gpu" else 0,
        )
    for name in ("output", "gradient of input", "gradient of weights[0]", "gradient of weights[5]"):
        high, highest = results["high"][name], results["highest"][name]
        assert high is not None
        assert highest is not None
        same = torch.equal(high.to_dense(), highest.to_dense())
        assert same == (processor() == "cpu"), name


@pytest.mark.parametrize(
    "layer", [LAYERS["residual"], LAYERS["recompute_strided"]], ids=["s1", "s2"]
)
@pytest.mark.parametrize("training", [True, False])
def test_float64(layer: Layer, training: bool, device: torch.device) -> None:
    layer = replace(layer, training=training)
    inputs = cast(layer.inputs(), torch.float64)
    gradient = cast(cotangents(layer, FIVE), torch.float64)
    expected = evaluate(stock(layer, FIVE), inputs, gradient)
    results = evaluate(on_device(run(layer, FIVE), device), inputs, gradient)
    assert_as_close(results, Expected(expected, expected), terms={"": 5 * 6 * 25 * 3 * 6 * 7})


@pytest.mark.parametrize("layer", [Layer(16, 32, stride=2), Layer(32, 32)], ids=["s2", "s1"])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_channels_as_in_the_networks(layer: Layer, mean: float, device: torch.device) -> None:
    layer = replace(layer, images=2, height=8, width=8)
    selection = torch.tensor([[K5_E6, 1], [K3_E3, 0]])
    inputs, gradient = layer.inputs(), cotangents(layer, selection)
    inputs["input"] = inputs["input"] + mean
    results = evaluate(on_device(run(layer, selection), device), inputs, gradient)
    expected = expect(stock(layer, selection), inputs, gradient)
    assert_as_close(results, expected, terms={"": 6 * 32 * 25})


@pytest.mark.parametrize("stride", [1, 2])
def test_small_integers_are_exact(stride: int, device: torch.device) -> None:
    # Variance 3 and eps 1 make the standard deviation 2, so that all of it is exact.
    class Exact(Layer):
        def running(self, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
            mean, var = super().running(dtype)
            return [m.round() for m in mean], [torch.full_like(v, 3.0) for v in var]

    layer = Exact(2, 2, stride=stride, training=False, eps=1.0, images=2, height=4, width=3)
    inputs = layer.inputs(small_integers)
    gradient = cotangents(layer, FIVE, small_integers)
    results = evaluate(on_device(run(layer, FIVE), device), inputs, gradient)
    exact = evaluate(stock(layer, FIVE), cast(inputs, torch.float64), gradient)
    for name in ("output", *(name for name in exact if name.startswith("gradient"))):
        result, expected = results[name], exact[name]
        if expected is None:
            assert result is None, name
            continue
        assert result is not None, name
        if result.is_sparse:
            rows, result = compact_rows(name, result)
            assert rows == expected.flatten(1).any(1).nonzero()[:, 0].tolist(), name
            expected = expected[rows]
        assert_bitwise(name, result, expected.float())


LAUNCHES = {
    # Expand, depthwise, project; in training the output is finished by a launch of its own.
    # Backward: sums, project, depthwise, input, weights, sums of all gradients.
    "training": (Layer(16, 32, stride=2), K5_E6, 4, 6),
    "recompute": (Layer(16, 16, recompute=True), K3_E3, 4, 8),
    "evaluation": (Layer(16, 16, training=False), K3_E3, 3, 6),
    "every_shape": (Layer(5, 6, stride=2), K3_E3, 4, 6),
    "projection": (Layer(16, 32, stride=2), IDENTITY, 2, 4),
    "identity": (Layer(16, 16), IDENTITY, 1, 1),
}


@pytest.mark.parametrize(("layer", "code", "forward", "backward"), LAUNCHES.values(), ids=LAUNCHES)
def test_emulated_launches(layer: Layer, code: int, forward: int, backward: int) -> None:
    reason = why_not_emulated(OPERATION)
    if reason is not None:
        pytest.skip(reason)
    # What did not run is not launched, and neither is anything that only merges.
    selection = torch.tensor([[code, 2], [code, 0]])
    inputs = {name: tensor.requires_grad_() for name, tensor in layer.inputs().items()}
    with emulated():
        output = run(layer, selection)(inputs)["output"]
        assert emulated_launches() == forward
        output.backward(cotangents(layer, selection)["output"])
        assert emulated_launches() == forward + backward


@pytest.mark.parametrize(
    "layer", [Layer(5, 6, stride=2), Layer(16, 16, images=6)], ids=["s2", "s1"]
)
def test_emulated_results_do_not_depend_on_the_schedule(layer: Layer) -> None:
    reason = why_not_emulated(OPERATION)
    if reason is not None:
        pytest.skip(reason)
    inputs, gradient = layer.inputs(), cotangents(layer, FIVE)
    results = []
    for seed in (0, 1, 2):
        with emulated(EmulatedDevice(processors=40, seed=seed)):
            results.append(evaluate(run(layer, FIVE), inputs, gradient))
    for other in results[1:]:
        for name, expected in results[0].items():
            result = other[name]
            assert result is not None
            assert expected is not None
            assert_bitwise(name, result.to_dense(), expected.to_dense(), nonzero=0.01)


WITHOUT_GRADIENTS = {
    "residual": Layer(),
    "strided": Layer(5, 6, stride=2),
    "first_candidate_wider": Layer(4, 3, expansions=(6, 2)),
    "one_row": Layer(stride=2, height=1, width=5),
    "many_images": Layer(3, 5, images=9, height=9, width=4),
    "many_pixels": Layer(4, 4, images=2, height=13, width=17),
    "whole_vectors": Layer(32, 32, images=5, height=4, width=4),
    "many_blocks": Layer(48, 64, stride=2, images=3, height=8, width=8),
}


@pytest.mark.parametrize("code", [K3_E3, K5_E6])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", WITHOUT_GRADIENTS.values(), ids=WITHOUT_GRADIENTS)
def test_without_gradients(layer: Layer, code: int, training: bool, device: torch.device) -> None:
    # In evaluation the hidden tensors are never written then.
    layer = replace(layer, training=training)
    selection = torch.tensor([[code, 2], [code, 0]])
    with torch.no_grad():
        results = evaluate(on_device(run(layer, selection), device), layer.inputs(), {})
    expected = expect(stock(layer, selection), layer.inputs(), {})
    assert_as_close(results, expected, terms={"": 6 * layer.in_channels * 25})


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_recompute_changes_no_bit(layer: Layer, device: torch.device) -> None:
    inputs, gradient = layer.inputs(), cotangents(layer, FIVE)
    kept = evaluate(on_device(run(replace(layer, recompute=False), FIVE), device), inputs, gradient)
    recomputed = evaluate(
        on_device(run(replace(layer, recompute=True), FIVE), device), inputs, gradient
    )
    for name, expected in kept.items():
        result = recomputed[name]
        assert (result is None) == (expected is None)
        if result is not None and expected is not None:
            assert_bitwise(name, result.to_dense(), expected.to_dense(), nonzero=0.01)


def test_recompute_keeps_neither_hidden_tensor() -> None:
    def saved(recompute: bool) -> int:
        layer, sizes = Layer(8, 8, recompute=recompute), []

        def pack(tensor: Tensor) -> Tensor:
            if tensor.dim() == 1:  # what is kept, in one piece
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            leaves = {name: t.requires_grad_() for name, t in layer.inputs().items()}
            run(layer, torch.tensor([K5_E6, 0]))(leaves)
        return sum(sizes)

    hidden = 2 * 6 * 8 * 3 * 6 * 7
    assert saved(recompute=False) - saved(recompute=True) == hidden


@pytest.mark.parametrize("training", [True, False])
def test_an_architecture_does_not_depend_on_the_others(
    training: bool, device: torch.device
) -> None:
    layer = Layer(training=training)
    for shared in (True, False):
        inputs = layer.inputs(architectures=None if shared else len(FIVE))
        gradient = cotangents(layer, FIVE)
        together = evaluate(on_device(run(layer, FIVE), device), inputs, gradient)
        for a, chosen in enumerate(FIVE):
            own = inputs if shared else {**inputs, "input": inputs["input"][a]}
            alone = evaluate(
                on_device(run(layer, chosen), device), own, {"output": gradient["output"][a]}
            )
            pairs = {"output": (together["output"], alone["output"])}
            if not shared:
                name = "gradient of input"
                pairs[name] = (together[name], alone[name])
            for name, (all_of, result) in pairs.items():
                assert all_of is not None
                assert result is not None
                assert_bitwise(f"{name}[{a}]", all_of[a], result)
            for bank in chain(int(chosen[0]), layer) if training else ():
                result = alone[f"statistics of bank {bank} for 0"]
                statistics = together[f"statistics of bank {bank} for {a}"]
                assert statistics is not None
                assert result is not None
                assert_bitwise(f"statistics of bank {bank}", statistics, result)


def test_groups_of_architectures(device: torch.device) -> None:
    # More than one launch takes; rows repeat within a group and between groups.
    layer, selection = Layer(5, 6, stride=2, images=2, height=4, width=3), FIVE.repeat(8, 1)
    inputs, gradient = layer.inputs(), cotangents(layer, selection)
    results = evaluate(on_device(run(layer, selection), device), inputs, gradient)
    expected = expect(stock(layer, selection), inputs, gradient)
    assert_as_close(results, expected, terms=terms(layer, len(selection)))


@pytest.mark.parametrize("dense_grad", [True, False])
def test_gradients_are_summed_in_order(dense_grad: bool, device: torch.device) -> None:
    layer = Layer(5, 6, stride=2, dense_grad=dense_grad)
    inputs, gradient = layer.inputs(), cotangents(layer, FIVE)
    together = evaluate(on_device(run(layer, FIVE), device), inputs, gradient)
    compact = replace(layer, dense_grad=False)
    singles = [
        evaluate(on_device(run(compact, chosen), device), inputs, {"output": gradient["output"][a]})
        for a, chosen in enumerate(FIVE)
    ]
    for name, result in together.items():
        if name.startswith("gradient"):
            present = [
                own.to_dense() for own in (single[name] for single in singles) if own is not None
            ]
            in_order = torch.zeros_like(present[0])
            for total in present:
                in_order += total
            assert result is not None
            assert result.is_sparse == (not dense_grad and name != "gradient of input")
            assert_bitwise(name, result.to_dense(), in_order)


def test_results_repeat_bit_for_bit(device: torch.device, threads: int) -> None:
    layer = Layer(8, 8, images=4, height=9, width=11)
    inputs, gradient = layer.inputs(), cotangents(layer, FIVE)
    first = evaluate(on_device(run(layer, FIVE), device), inputs, gradient)
    for _ in range(3):
        for name, result in evaluate(on_device(run(layer, FIVE), device), inputs, gradient).items():
            expected = first[name]
            assert result is not None
            assert expected is not None
            assert_bitwise(name, result.to_dense(), expected.to_dense(), nonzero=0.01)


def torchvision_block(layer: Layer, code: int, *, v3: bool) -> nn.Module:
    """torchvision's inverted residual: MobileNetV3's, or V2's with its ReLU6 made a ReLU."""
    models = pytest.importorskip("torchvision.models")
    expansion, size = layer.expansions[code - K3_E3], (3, 5)[code - K3_E3]
    if v3:
        block: nn.Module = models.mobilenetv3.InvertedResidual(
            models.mobilenetv3.InvertedResidualConfig(
                layer.in_channels,
                size,
                expansion * layer.in_channels,
                layer.out_channels,
                use_se=False,
                activation="RE",
                stride=layer.stride,
                dilation=1,
                width_mult=1.0,
            ),
            nn.BatchNorm2d,
        )
        return block
    block = models.mobilenetv2.InvertedResidual(
        layer.in_channels, layer.out_channels, layer.stride, expansion
    )
    for parent in list(block.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU())
    return block


def block_parts(block: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Its convolutions, each with the batch norm behind it."""
    modules = list(block.modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    return list(zip(convolutions, norms, strict=True))


def run_block(block: nn.Module, layer: Layer, code: int, inputs: Tensors, row: int) -> Results:
    """The results of a block with the weights of a row, as those of the operation."""
    dtype = inputs["input"].dtype
    block = deepcopy(block).to(dtype)
    running = layer.running(dtype)
    banks = chain(code, layer)
    with torch.no_grad():
        for bank, (convolution, norm) in zip(banks, block_parts(block), strict=True):
            norm.eps = layer.eps
            convolution.weight.copy_(inputs[f"weights[{bank}]"][row])
            norm.weight.copy_(inputs[f"scales[{bank}]"][row])
            norm.bias.copy_(inputs[f"shifts[{bank}]"][row])
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(running[0][bank][row])
            norm.running_var.copy_(running[1][bank][row])
    images = inputs["input"].clone().requires_grad_()
    output = block(images)
    gradient = cotangents(layer, torch.tensor([code, row]))["output"]
    output.backward(gradient.to(dtype))
    results = {"output": output.detach(), "gradient of input": images.grad}
    for bank, (convolution, norm) in zip(banks, block_parts(block), strict=True):
        for group, parameter in (
            ("weights", convolution.weight),
            ("scales", norm.weight),
            ("shifts", norm.bias),
        ):
            assert parameter.grad is not None
            gradients = torch.zeros_like(inputs[f"{group}[{bank}]"])
            gradients[row] = parameter.grad
            results[f"gradient of {group}[{bank}]"] = gradients
    return results


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [Layer(8, 8), Layer(8, 16, stride=2)], ids=["s1", "s2"])
@pytest.mark.parametrize(("code", "v3"), [(K3_E3, False), (K3_E3, True), (K5_E6, True)])
def test_is_torchvisions_inverted_residual(
    code: int, v3: bool, layer: Layer, training: bool, device: torch.device
) -> None:
    layer = replace(layer, training=training)
    block = torchvision_block(layer, code, v3=v3).train(training)
    inputs, selection = layer.inputs(), torch.tensor([code, 1])
    expected = Expected(
        run_block(block, layer, code, cast(inputs, torch.float64), row=1),
        run_block(block, layer, code, inputs, row=1),
    )
    results = evaluate(
        on_device(run(layer, selection), device), inputs, cotangents(layer, selection)
    )
    assert_as_close(results, expected, terms=terms(layer, 1))
