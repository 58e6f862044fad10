"""Cases of `cw.ops.inverted_bottleneck`: banks, and a layer of stock torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.ops._dtypes import parameter_dtype
from cwkernels.ops.inverted_bottleneck import statistics_slice
from cwkernels.spaces.macro import CANDIDATES, LAYERS
from cwkernels.testing.cases.call import Call
from cwkernels.testing.functions import Function, Tensors
from cwkernels.testing.inputs import Draw, channels_last, dense_random, statistics_of

IDENTITY, K3_E3, K5_E6 = range(3)
PROJECTION = 6
GROUPS = ("weights", "scales", "shifts")


@dataclass(frozen=True)
class Layer:
    """How a layer runs, and of what size."""

    in_channels: int = 4
    out_channels: int = 4
    stride: int = 1
    expansions: tuple[int, int] = (3, 6)
    training: bool = True
    recompute: bool = False
    dense_grad: bool = False
    eps: float = 1e-5
    sets: int = 3
    images: int = 3
    height: int = 6
    width: int = 7

    @property
    def keeps_shape(self) -> bool:
        """Whether there is a residual and no projection."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Of the banks, in the operation's order."""
        shapes: list[tuple[int, ...]] = []
        for expansion, size in zip(self.expansions, (3, 5), strict=True):
            hidden = expansion * self.in_channels
            shapes += [
                (self.sets, hidden, self.in_channels, 1, 1),
                (self.sets, hidden, 1, size, size),
                (self.sets, self.out_channels, hidden, 1, 1),
            ]
        projection = (self.sets, self.out_channels, self.in_channels, 1, 1)
        return shapes if self.keeps_shape else [*shapes, projection]

    def inputs(
        self, draw: Draw = dense_random, architectures: int | None = None
    ) -> dict[str, Tensor]:
        """Channels-last "input", shared unless for some architectures, and the banks by name."""
        lead = () if architectures is None else (architectures,)
        shape = (*lead, self.images, self.in_channels, self.height, self.width)
        inputs = {"input": channels_last(draw(*shape, seed=0))}
        for i, weight_shape in enumerate(self.weight_shapes):
            inputs[f"weights[{i}]"] = draw(*weight_shape, seed=1 + i)
            # Such that few channels are rectified to nearly nothing, whose variance is tiny then.
            inputs[f"scales[{i}]"] = draw(*weight_shape[:2], seed=10 + i) * 0.25 + 1
            inputs[f"shifts[{i}]"] = draw(*weight_shape[:2], seed=20 + i) * 0.5 + 0.5
        return inputs

    def banks(self, tensors: Tensors) -> list[list[Tensor]]:
        """Weights, scales and shifts."""
        count = len(self.weight_shapes)
        return [[tensors[f"{group}[{i}]"] for i in range(count)] for group in GROUPS]

    def running(self, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
        """Running means and variances."""
        mean, var = _draw_running(self, dtype)
        return list(mean), list(var)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one architecture."""
        size = ((side - 1) // self.stride + 1 for side in (self.height, self.width))
        return (self.images, self.out_channels, *size)


@cache  # drawing them would be a good part of a benchmark's small calls
def _draw_running(layer: Layer, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    shapes = [shape[:2] for shape in layer.weight_shapes]
    mean = [dense_random(*shape, seed=50 + i).to(dtype) for i, shape in enumerate(shapes)]
    var = [dense_random(*shape, seed=70 + i).abs().add(0.5) for i, shape in enumerate(shapes)]
    return mean, [v.to(dtype) for v in var]


def chain(code: int, layer: Layer) -> list[int]:
    """The banks that a choice reads."""
    if code == IDENTITY:
        return [] if layer.keeps_shape else [PROJECTION]
    return [0, 1, 2] if code == K3_E3 else [3, 4, 5]


def call(layer: Layer, selection: Tensor, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The operation's output and statistics."""
    input = tensors["input"]
    running = layer.running(parameter_dtype(input.dtype))
    return ops.inverted_bottleneck(
        input,
        selection,
        *layer.banks(tensors),
        *([tensor.to(input.device) for tensor in group] for group in running),
        stride=layer.stride,
        training=layer.training,
        eps=layer.eps,
        recompute=layer.recompute,
        dense_grad=layer.dense_grad,
    )


def run(layer: Layer, selection: Tensor) -> Function:
    """The operation; its statistics are given by bank, as it lays them out, if it measures any."""

    def function(tensors: Tensors) -> Tensors:
        weights = layer.banks(tensors)[0]
        output, statistics = call(layer, selection, tensors)
        results = {"output": output}
        for a, (code, _) in enumerate(selection.reshape(-1, 2).tolist()):
            own = statistics.reshape(-1, *statistics.shape[-2:])[a]
            for bank in chain(code, layer) if layer.training else ():
                results |= named_statistics(a, bank, own[:, statistics_slice(weights, bank)])
        return results

    return function


def named_statistics(a: int, bank: int, statistics: Tensor) -> dict[str, Tensor]:
    """Those of an architecture and a bank: together, as a mean may be nearly zero."""
    return {f"statistics of bank {bank} for {a}": statistics.detach()}


def stock(layer: Layer, selection: Tensor, *, statistics_too: bool = True) -> Function:
    """Stock torch; its statistics if asked for."""

    def one(
        images: Tensor, code: int, row: int, banks: list[list[Tensor]]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        measured = {}
        running = layer.running(parameter_dtype(images.dtype))
        value = images
        for place, bank in enumerate(chain(code, layer)):
            weight, scale, shift = (group[bank][row] for group in banks)
            depthwise = code != IDENTITY and place == 1
            stride = layer.stride if depthwise or code == IDENTITY else 1
            groups = weight.shape[0] if depthwise else 1
            # As autocast does to the weights of images in bfloat16.
            weight = weight.to(images.dtype)
            raw = F.conv2d(value, weight, None, stride, weight.shape[-1] // 2, groups=groups)
            if statistics_too and layer.training:
                measured[bank] = statistics_of(raw)
            mean, variance = (None, None)
            if not layer.training:
                mean, variance = (own[bank][row].to(images.device) for own in running)
            value = F.batch_norm(
                raw, mean, variance, scale, shift, training=layer.training, eps=layer.eps
            )
            value = F.relu(value) if code != IDENTITY and place < 2 else value
        residual = code != IDENTITY and layer.keeps_shape
        return (value + images if residual else value * 1), measured

    def function(tensors: Tensors) -> Tensors:
        input, banks = tensors["input"], layer.banks(tensors)
        choices: Sequence[Sequence[int]] = selection.reshape(-1, 2).tolist()
        batches = input if input.dim() == 5 else input.expand(len(choices), *input.shape)
        outputs: list[Tensor] = []
        statistics: dict[str, Tensor] = {}
        for a, (images, (code, row)) in enumerate(zip(batches, choices, strict=True)):
            output, measured = one(images, code, row, banks)
            outputs.append(output)
            for bank, own in measured.items():
                statistics |= named_statistics(a, bank, own)
        output = torch.stack(outputs) if selection.dim() == 2 else outputs[0]
        return {"output": output, **statistics}

    return function


def cotangents(layer: Layer, selection: Tensor, draw: Draw = dense_random) -> dict[str, Tensor]:
    """The gradient of the output."""
    lead = selection.shape[:-1]
    return {"output": channels_last(draw(*lead, *layer.output_shape, seed=40))}


def without_gradients(function: Function) -> Function:
    """The same, with nothing recorded: in evaluation the operation then keeps nothing."""

    def run(tensors: Tensors) -> Tensors:
        with torch.no_grad():
            return function(tensors)

    return run


def network_calls(images: int) -> list[Call]:
    """Both bottlenecks of each of Macro's layers, each shape once, and the strided identities.

    Each in training, and in evaluation as a scoring pass runs it.
    """
    return [
        call
        for training in (False, True)
        for number, shape in enumerate(LAYERS)
        if shape not in LAYERS[:number]
        for candidate in CANDIDATES
        if (call := _network_call(images, training, number, candidate.code)) is not None
    ]


def _network_call(images: int, training: bool, number: int, code: int) -> Call | None:
    """One layer and candidate; None for an identity that computes nothing."""
    shape, name = LAYERS[number], f"macro_{number}_{CANDIDATES[code].name}"
    layer = Layer(
        *(shape.in_channels, shape.out_channels, shape.stride),
        training=training,
        images=images,
        height=shape.input_size,
        width=shape.input_size,
    )
    if code == IDENTITY and layer.keeps_shape:
        return None
    selection = torch.tensor([code, 1])
    ours, theirs = run(layer, selection), stock(layer, selection, statistics_too=False)
    return Call(
        "inverted_bottleneck",
        name if training else f"{name}_eval",
        ours if training else without_gradients(ours),
        theirs,
        layer.inputs,
        partial(cotangents, layer, selection) if training else dict,
        # What a gradient sums on its way through the hidden channels and the 5x5 taps.
        {"": layer.expansions[1] * layer.in_channels * 25},
    )
