"""Rivals in stock PyTorch: what a user writes without cwkernels.

`StockNB201` and `StockMacro` are plain super-networks: every candidate of every edge or layer is a
live module and `forward(images, architecture)` runs the chosen ones. `AuthorsWay` puts conditional
weights on top of either as the authors' public code does, by exchanging state dicts.

What is computed is what such code computes: an edge that holds Zero is skipped, every other chosen
operation runs, also a convolution whose output reaches nothing or whose input is zero. (cwkernels
leaves those out; that is part of what is compared.)

An architecture is an int64 tensor of choices, in the space's own order of candidates.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NB201_CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "full": ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    "no_zero": ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    "only_conv": ("nor_conv_1x1", "nor_conv_3x3"),
}
NB201_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
NB201_PREDECESSORS = ((), (), (0,), (), (0,), (1, 2))

MACRO_CANDIDATES = ("identity", "k3_e3", "k5_e6")
MACRO_LAYERS = (
    (32, 64, 2),
    (64, 64, 1),
    (64, 128, 2),
    (128, 128, 1),
    (128, 128, 1),
    (128, 256, 2),
    (256, 256, 1),
    (256, 256, 1),
)


@dataclass(frozen=True)
class ConditionalList:
    """The candidates of one edge or layer and the decisions that their weights depend on."""

    candidates: nn.ModuleList
    predecessors: tuple[int, ...]
    num_choices: int


def candidate_lists(modules: nn.ModuleList) -> list[nn.ModuleList]:
    """The lists in a list of lists of candidates."""
    return [module for module in modules if isinstance(module, nn.ModuleList)]


class Zero(nn.Module):
    """Marks an edge that contributes nothing; a cell skips it and never calls it."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the input's shape."""
        return torch.zeros_like(x)


class ReluConvNorm(nn.Sequential):
    """ReLU, convolution, batch norm without affine parameters."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(channels, affine=False),
        )


_NB201_MODULES: Mapping[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: Zero(),
    "skip_connect": lambda channels: nn.Identity(),
    "nor_conv_1x1": lambda channels: ReluConvNorm(channels, 1),
    "nor_conv_3x3": lambda channels: ReluConvNorm(channels, 3),
    "avg_pool_3x3": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}


class NB201Cell(nn.Module):
    """A cell of four nodes; a node is the sum of its incoming edges."""

    def __init__(self, candidates: Sequence[str], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            nn.ModuleList(_NB201_MODULES[name](channels) for name in candidates)
            for _ in NB201_EDGES
        )

    def forward(self, x: Tensor, choices: Sequence[int]) -> Tensor:
        """The output of the last node under one choice per edge."""
        nodes = [x]
        for node in range(1, 4):
            terms = [
                operation(nodes[source])
                for (source, target), edge, choice in zip(
                    NB201_EDGES, candidate_lists(self.edges), choices, strict=True
                )
                if target == node and not isinstance(operation := edge[choice], Zero)
            ]
            nodes.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x))
        return nodes[-1]


class Reduction(nn.Module):
    """The fixed residual block of stride 2 between two stages of NAS-Bench-201."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Main branch plus shortcut."""
        result: Tensor = self.main(x) + self.shortcut(x)
        return result


class StockNB201(nn.Module):
    """The NAS-Bench-201 super-network of the paper's table 2 (Skip without a projection)."""

    def __init__(
        self,
        space: str = "full",
        *,
        channels: int = 16,
        cells_per_stage: int = 2,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.num_choices = len(NB201_CANDIDATES[space])
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.body = nn.ModuleList()
        for stage in range(3):
            width = channels * 2**stage
            if stage > 0:
                self.body.append(Reduction(width // 2, width))
            self.body.extend(
                NB201Cell(NB201_CANDIDATES[space], width) for _ in range(cells_per_stage)
            )
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor, architecture: Tensor) -> Tensor:
        """Logits `[N, K]` of one architecture `[6]`."""
        choices = architecture.tolist()
        x = self.stem(images)
        for part in self.body:
            x = part(x, choices) if isinstance(part, NB201Cell) else part(x)
        logits: Tensor = self.classifier(self.head(x).mean((2, 3)))
        return logits

    def candidates(self) -> list[nn.ModuleList]:
        """The candidates of every edge of every cell."""
        cells = [part for part in self.body if isinstance(part, NB201Cell)]
        return [edge for cell in cells for edge in candidate_lists(cell.edges)]

    def conditional_lists(self) -> list[ConditionalList]:
        """The edges that have predecessors, cell by cell."""
        return [
            ConditionalList(edge, predecessors, self.num_choices)
            for cell in self.body
            if isinstance(cell, NB201Cell)
            for edge, predecessors in zip(
                candidate_lists(cell.edges), NB201_PREDECESSORS, strict=True
            )
            if predecessors
        ]


class InvertedBottleneck(nn.Module):
    """Expand 1×1, depthwise k×k, project 1×1, each with batch norm; residual where shapes agree."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, kernel_size: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = inputs == outputs and stride == 1
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(
                hidden,
                hidden,
                kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                groups=hidden,
                bias=False,
            ),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        result: Tensor = x + self.layers(x) if self.residual else self.layers(x)
        return result


def _macro_identity(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


class StockMacro(nn.Module):
    """The NAS-Bench-Macro super-network of the paper's table 3."""

    def __init__(self, *, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    _macro_identity(inputs, outputs, stride),
                    InvertedBottleneck(inputs, outputs, stride, kernel_size=3, expansion=3),
                    InvertedBottleneck(inputs, outputs, stride, kernel_size=5, expansion=6),
                )
            )
            for inputs, outputs, stride in MACRO_LAYERS
        )
        self.head = nn.Sequential(
            nn.Conv2d(256, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor, architecture: Tensor) -> Tensor:
        """Logits `[N, K]` of one architecture `[8]`."""
        x = self.stem(images)
        for layer, choice in zip(candidate_lists(self.layers), architecture.tolist(), strict=True):
            x = layer[choice](x)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.head(x), 1).flatten(1))
        return logits

    def candidates(self) -> list[nn.ModuleList]:
        """The candidates of every layer."""
        return candidate_lists(self.layers)

    def conditional_lists(self) -> list[ConditionalList]:
        """Every layer but the first, each depending on the layer before."""
        return [
            ConditionalList(layer, (index - 1,), len(MACRO_CANDIDATES))
            for index, layer in enumerate(candidate_lists(self.layers))
            if index > 0
        ]


@dataclass
class _Slot:
    """One live module list, the combination that it holds and the store of the others."""

    conditional: ConditionalList
    live: tuple[int, ...] | None = None
    store: dict[tuple[int, ...], dict[str, Tensor]] = field(default_factory=dict)

    def combination(self, choices: Sequence[int]) -> tuple[int, ...]:
        """The predecessors' choices."""
        return tuple(choices[decision] for decision in self.conditional.predecessors)

    def all_combinations(self) -> list[tuple[int, ...]]:
        """Every combination that the predecessors can form."""
        depth = len(self.conditional.predecessors)
        return list(itertools.product(range(self.conditional.num_choices), repeat=depth))

    def select(self, combination: tuple[int, ...]) -> None:
        """Make the live list hold this combination's weights."""
        if self.live is not None and self.live != combination:
            self._exchange(self.live, combination)
        self.live = combination

    def _exchange(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        candidates = self.conditional.candidates
        self.store[old] = {name: tensor.clone() for name, tensor in candidates.state_dict().items()}
        if new in self.store:
            candidates.load_state_dict(self.store[new])


class AuthorsWay(nn.Module):
    """Conditional weights by exchanging state dicts, as the authors' public code does.

    Each edge or layer with predecessors keeps one live module list and a store. Before a forward
    pass after the split, if the combination differs from the live one, the state dict of all its
    candidates, buffers too, is cloned into the store under the old combination, and the new one's
    is loaded; nothing stored yet means that the live weights stay. The optimizer sees the live
    parameters only, so there is one momentum buffer for all combinations.
    """

    def __init__(self, network: StockNB201 | StockMacro) -> None:
        super().__init__()
        self.network = network
        self.is_split = False
        self._slots = [_Slot(conditional) for conditional in network.conditional_lists()]

    def forward(self, images: Tensor, architecture: Tensor) -> Tensor:
        """Logits `[N, K]`; after the split, the architecture's weights are brought in first."""
        if self.is_split:
            self.select(architecture)
        logits: Tensor = self.network(images, architecture)
        return logits

    def split(self) -> None:
        """From now on weights depend on combinations."""
        self.is_split = True

    def select(self, architecture: Tensor) -> None:
        """Exchange the weights of every edge or layer whose combination is not the live one."""
        choices = architecture.tolist()
        for slot in self._slots:
            slot.select(slot.combination(choices))

    def visit_all_combinations(self) -> None:
        """Fill the stores with all combinations, as a long training does."""
        for slot in self._slots:
            combinations = slot.all_combinations()
            # The first one again: a combination is stored when another takes its place.
            for combination in (*combinations, combinations[0]):
                slot.select(combination)

    def stored_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of all stored copies."""
        for slot in self._slots:
            for state in slot.store.values():
                yield from state.items()
