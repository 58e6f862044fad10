"""Cases of `cw.ops.nb201_cell`: selections, banks, and a cell of stock torch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.ops._dtypes import parameter_dtype
from cwkernels.testing.cases.call import Call
from cwkernels.testing.functions import Function, Tensors
from cwkernels.testing.inputs import Draw, channels_last, dense_random, statistics_of
from cwkernels.testing.tolerances import CELL_CONVOLUTIONS

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))  # from input to output, by edges
SETS, CHANNELS = 3, 5

HAND_PICKED = {
    "convolutions_3x3": (3, 3, 3, 3, 3, 3),
    "convolutions_1x1": (2, 2, 2, 2, 2, 2),
    "everything": (3, 4, 2, 1, 2, 3),
    "pools": (4, 4, 4, 4, 4, 4),
    "lone_skip": (0, 0, 0, 1, 0, 0),
    "lone_pool": (0, 0, 0, 4, 0, 0),
    "lone_convolution": (0, 0, 0, 3, 0, 0),
    "chain_of_skips": (1, 0, 1, 0, 0, 1),
    "skips_alone_into_convolutions": (1, 1, 0, 3, 2, 3),
    "two_skips_into_a_convolution": (1, 0, 1, 0, 0, 3),
    "skip_beside_a_convolution": (1, 3, 1, 0, 3, 2),
    "chain_of_convolutions": (3, 0, 2, 0, 0, 3),
    "nothing": (0, 0, 0, 0, 0, 0),
    "nothing_reaches_the_output": (3, 2, 3, 0, 0, 0),
    "reaches_no_output": (3, 0, 0, 2, 0, 0),
    "both_inner_nodes_lost": (3, 3, 2, 1, 0, 0),
    "fed_by_nothing": (0, 0, 3, 4, 2, 3),
    "fed_by_a_dead_convolution": (0, 0, 3, 3, 0, 2),
    "fed_by_nothing_beside_alive": (0, 2, 3, 1, 2, 3),
}


def active(codes: Sequence[int]) -> set[int]:
    """The edges that lie on a path from input to output with no Zero on it."""
    return {edge for path in PATHS if all(codes[e] for e in path) for edge in path}


def alive(codes: Sequence[int]) -> set[int]:
    """The edges of convolutions that are not dead."""
    return {edge for edge in active(codes) if codes[edge] in (2, 3)}


def sample(count: int, seed: int) -> list[tuple[int, ...]]:
    """Random codes of architectures."""
    generator = random.Random(seed)
    return [tuple(generator.randrange(5) for _ in EDGES) for _ in range(count)]


def select(codes: Sequence[Sequence[int]], seed: int = 0) -> Tensor:
    """A selection [A, 6, 2] with random rows, the first and the last of the banks among them."""
    generator = random.Random(seed)
    rows = [[generator.randrange(SETS) for _ in EDGES] for _ in codes]
    return torch.stack([torch.tensor(codes), torch.tensor(rows)], dim=-1)


@dataclass(frozen=True)
class Cell:
    """How a cell runs, and of what size."""

    training: bool = True
    count_include_pad: bool = False
    projection: bool = False
    dense_grad: bool = False
    eps: float = 1e-5
    channels: int = CHANNELS
    images: int = 3
    height: int = 6
    width: int = 7

    @property
    def per_edge(self) -> int:
        """Banks of an edge."""
        return 3 if self.projection else 2

    def inputs(
        self, draw: Draw = dense_random, architectures: int | None = None
    ) -> dict[str, Tensor]:
        """Channels-last "input", shared unless for some architectures, and "weights[i]"."""
        lead = () if architectures is None else (architectures,)
        shape = (*lead, self.images, self.channels, self.height, self.width)
        inputs = {"input": channels_last(draw(*shape, seed=0))}
        for i in range(6 * self.per_edge):
            size = (1, 3, 1)[i % self.per_edge]
            shape = (SETS, self.channels, self.channels, size, size)
            inputs[f"weights[{i}]"] = draw(*shape, seed=1 + i)
        return inputs

    def weights(self, tensors: Tensors) -> list[Tensor]:
        """The banks in the operation's order."""
        return [tensors[f"weights[{i}]"] for i in range(6 * self.per_edge)]

    def running(self, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
        """Running means and variances."""
        mean, var = _draw_running(self.channels, dtype)
        return list(mean), list(var)


@cache  # drawing them would be a good part of a benchmark's small calls
def _draw_running(channels: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    shape = (SETS, channels)
    mean = [dense_random(*shape, seed=50 + i).to(dtype) for i in range(12)]
    return mean, [dense_random(*shape, seed=70 + i).abs().add(0.5).to(dtype) for i in range(12)]


def run(cell: Cell, selection: Tensor) -> Function:
    """The operation; an int32 selection is one that lies where the images do."""

    def function(tensors: Tensors) -> Tensors:
        input = tensors["input"]
        running = cell.running(parameter_dtype(input.dtype))
        output, statistics, own = ops.nb201_cell(
            input,
            selection.to(input.device) if selection.dtype == torch.int32 else selection,
            cell.weights(tensors),
            *([tensor.to(input.device) for tensor in group] for group in running),
            training=cell.training,
            count_include_pad=cell.count_include_pad,
            eps=cell.eps,
            dense_grad=cell.dense_grad,
        )
        return named_results(output, statistics, own)

    return function


def named_results(output: Tensor, statistics: Tensor, own: Tensor) -> dict[str, Tensor]:
    """What the operation returns, by name."""
    return {
        "output": output,
        "edge means": statistics[..., 0, :],
        "edge variances": statistics[..., 1, :],
        # Together, as the mean of a sum of normalised tensors is nearly zero.
        "output statistics": own,
    }


def stock(cell: Cell, selection: Tensor, *, statistics_too: bool = True) -> Function:
    """Stock torch, edge after edge; an input of zeros gives zeros, and nothing else is left out.

    Without statistics there is only an output, of cells in which no node is fed by nothing.
    """

    def one(images: Tensor, choices: list[list[int]], tensors: Tensors) -> tuple[Tensor, Tensor]:
        dtype = parameter_dtype(images.dtype)
        weights = [weight.to(images.dtype) for weight in cell.weights(tensors)]
        running = cell.running(dtype)
        nodes = [images, *(images * 0 for _ in range(3))]
        statistics = images.new_zeros((6, 2, images.shape[1]), dtype=dtype)
        for edge, (source, target) in enumerate(EDGES):
            code, row = choices[edge]
            value = nodes[source]
            if code == 0 or (statistics_too and not value.detach().any()):
                continue
            if code in (2, 3):
                weight = weights[edge * cell.per_edge + code - 2][row]
                raw = F.conv2d(F.relu(value), weight, padding=code - 2)
                measured = statistics_too and cell.training
                if measured and edge in alive([code for code, _ in choices]):
                    statistics[edge] = statistics_of(raw)
                mean, variance = (None, None)
                if not cell.training:
                    mean, variance = (
                        own[2 * edge + code - 2][row].to(images.device) for own in running
                    )
                value = F.batch_norm(raw, mean, variance, training=cell.training, eps=cell.eps)
            elif code == 4:
                value = F.avg_pool2d(value, 3, 1, 1, count_include_pad=cell.count_include_pad)
            elif cell.projection:
                value = F.conv2d(value, weights[3 * edge + 2][row])
            nodes[target] = nodes[target] + value
        return nodes[3], statistics

    def function(tensors: Tensors) -> Tensors:
        input, several = tensors["input"], selection.dim() == 3
        choices = selection.reshape(-1, 6, 2)
        batches = input if input.dim() == 5 else input.expand(len(choices), *input.shape)
        results = [
            one(images, chosen, tensors)
            for images, chosen in zip(batches, choices.tolist(), strict=True)
        ]
        output, statistics = (torch.stack(group) for group in zip(*results, strict=True))
        named = {"output": output}
        if statistics_too:
            own = statistics_of(output)
            named = named_results(output, statistics, own if cell.training else own * 0)
        return named if several else {name: value[0] for name, value in named.items()}

    return function


def cotangents(cell: Cell, selection: Tensor, draw: Draw = dense_random) -> dict[str, Tensor]:
    """The gradient of the output."""
    shape = (cell.images, cell.channels, cell.height, cell.width)
    return {"output": channels_last(draw(*selection.shape[:-2], *shape, seed=40))}


def network_calls(images: int) -> list[Call]:
    """A cell of each stage: its most expensive architecture, and one of every operation."""
    calls = []
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        cell = Cell(channels=channels, images=images, height=side, width=side)
        for name in ("convolutions_3x3", "everything"):
            selection = select([HAND_PICKED[name]])[0]
            call = Call(
                "nb201_cell",
                f"nb201_{name}_{channels}",
                run(cell, selection),
                stock(cell, selection, statistics_too=False),
                cell.inputs,
                partial(cotangents, cell, selection),
                {"": images * side * side},
                CELL_CONVOLUTIONS,
            )
            calls.append(call)
    return calls
