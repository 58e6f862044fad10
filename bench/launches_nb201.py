"""The kernels of a NAS-Bench-201 network: stem, cells, residual reductions, head.

A cell's forward pass has a kernel for each node that a convolution leaves, and one that writes its
output; backward has one for each of those nodes and one for all weight gradients, which at 16
channels is part of the others. A node is written only where a convolution leaves it: elsewhere its
terms are read in its place. Raw outputs of convolutions are normalised where they are read.
"""

from collections.abc import Sequence
from itertools import chain

from bench.launches import Convolution, Plan, Shape, Value
from cwkernels.ops._cell_plan import CONV_3X3, CONVOLUTIONS, EDGES, NONE, active_edges

CELLS_PER_STAGE = 2
STAGES = 3
FUSED_CHANNELS = 16
"""At which a block holds the gradients of a node's weights beside those of its data."""
HEAD_FORWARD = ("pool", "linear", "log softmax", "loss")
HEAD_BACKWARD = ("loss", "log softmax", "linear, data", "linear, weight", "linear, bias", "pool")
"""What stays stock torch at the end; a backward kernel for each."""


class Cell:
    """One cell of one architecture.

    Args:
        plan: where launches go.
        name: of the cell.
        codes: the operation code of each edge.
        shape: of all its nodes.
        input: its first node.
    """

    def __init__(
        self, plan: Plan, name: str, codes: tuple[int, ...], shape: Shape, input: Value
    ) -> None:
        self.plan, self.name, self.shape = plan, name, shape
        active = active_edges(codes)
        self.edges = [
            (*EDGES[i], code) for i, code in enumerate(codes) if active[i] and code != NONE
        ]
        self.nodes = {n: self._value(f"node {n}") for n in (1, 2, 3)} | {0: input}
        self.gradients = {n: self._value(f"gradient of node {n}") for n in range(4)}

    @property
    def output(self) -> Value:
        """The last node."""
        return self.nodes[3]

    def forward(self) -> None:
        """In training: raw outputs are kept."""
        for node in (0, 1, 2):
            if convs := self._convolutions(self._leaving(node)):
                reads = [self.nodes[0]] if node == 0 else self._incoming(node)
                writes = [self._raw(edge) for edge in self._leaving(node) if self._is_conv(edge)]
                kept = [self.nodes[node]] if node else []
                self.plan.launch(f"{self.name} from {node}", reads, (*kept, *writes), convs)
        self.plan.launch(f"{self.name} to 3", self._incoming(3), [self.nodes[3]])

    def evaluate(self) -> None:
        """Without gradients: normalised in the epilogue, and added straight to the nodes."""
        written: set[int] = set()
        for node in (0, 1, 2):
            leaving = self._leaving(node)
            targets = sorted({target for _, target, _ in leaving})
            if not targets:
                continue
            reads = [self.nodes[node], *(self.nodes[n] for n in targets if n in written)]
            writes = [self.nodes[n] for n in targets]
            self.plan.launch(f"{self.name} from {node}", reads, writes, self._convolutions(leaving))
            written |= set(targets)
        if not self.edges:
            self.plan.launch(f"{self.name} to 3", (), [self.nodes[3]])

    def backward(self, gradient: Value) -> Value | None:
        """From the output's gradient to the input's; None if nothing reaches the input."""
        if not self.edges:
            return None
        self.gradients[3] = gradient
        self.plan.also(self._raw(edge) for edge in self._entering(3) if self._is_conv(edge))
        fused = self.shape.channels == FUSED_CHANNELS
        for node in (2, 1, 0):
            leaving = self._leaving(node)
            convs = self._convolutions(leaving)
            sums = [self._raw(edge) for edge in self._entering(node) if self._is_conv(edge)]
            if not convs and node:
                self.plan.also(sums)
                continue
            raws = [self._raw(edge) for edge in leaving if self._is_conv(edge)]
            mask = [self.nodes[node]] if convs else []
            reads = (*self._gradient_terms(leaving), *raws, *mask, *sums)
            written = [conv.gradient for conv in convs] if fused else []
            name = f"{self.name} gradient of {node}"
            # A second time for the weights' gradients, which read nothing more.
            work = [*convs, *convs] if fused else convs
            self.plan.launch(name, reads, (self.gradients[node], *written), work)
        every = [edge for edge in self.edges if self._is_conv(edge)]
        if every and not fused:
            terms = chain.from_iterable(
                (self.nodes[edge[0]], self._raw(edge), *self._gradient_terms([edge]))
                for edge in every
            )
            name = f"{self.name} weight gradients"
            self.plan.weight_gradients(name, terms, self._convolutions(every))
        else:
            self.plan.weights += [conv.weight for conv in self._convolutions(every)]
        return self.gradients[0]

    def _value(self, name: str) -> Value:
        return self.plan.value(f"{self.name} {name}", self.shape)

    def _leaving(self, node: int) -> list[tuple[int, int, int]]:
        return [edge for edge in self.edges if edge[0] == node]

    def _entering(self, node: int) -> list[tuple[int, int, int]]:
        return [edge for edge in self.edges if edge[1] == node]

    @staticmethod
    def _is_conv(edge: tuple[int, int, int]) -> bool:
        return edge[2] in CONVOLUTIONS

    def _raw(self, edge: tuple[int, int, int]) -> Value:
        return self._value(f"raw {edge[0]} to {edge[1]}")

    def _convolutions(self, edges: Sequence[tuple[int, int, int]]) -> list[Convolution]:
        return [
            Convolution(
                f"{self.name} {source} to {target}",
                self.shape,
                self.shape,
                3 if code == CONV_3X3 else 1,
            )
            for source, target, code in edges
            if code in CONVOLUTIONS
        ]

    def _kept(self, node: int) -> bool:
        return node in (0, 3) or bool(self._convolutions(self._leaving(node)))

    def _incoming(self, node: int) -> list[Value]:
        """What a node is the sum of, each once."""
        terms: list[Value] = []
        for edge in self._entering(node):
            if self._is_conv(edge):
                terms.append(self._raw(edge))
            elif self._kept(edge[0]):
                terms.append(self.nodes[edge[0]])
            else:
                terms += self._incoming(edge[0])
        return list(dict.fromkeys(terms))

    def _gradient_terms(self, leaving: Sequence[tuple[int, int, int]]) -> list[Value]:
        """The gradients that come in by these edges; a node that is not kept has its targets'."""
        terms: list[Value] = []
        for _, target, _ in leaving:
            terms += (
                [self.gradients[target]]
                if self._kept(target)
                else self._gradient_terms(self._leaving(target))
            )
        return list(dict.fromkeys(terms))


class Reduction:
    """The fixed residual block between two stages."""

    def __init__(self, plan: Plan, name: str, source: Shape, target: Shape, input: Value) -> None:
        self.plan, self.name, self.input = plan, name, input
        half = Shape(source.images, source.channels, target.size)
        self.conv_a = Convolution(f"{name} a", source, target, 3)
        self.conv_b = Convolution(f"{name} b", target, target, 3)
        self.shortcut = Convolution(f"{name} shortcut", half, target, 1)
        self.a, self.b, self.short, self.output = (
            plan.value(f"{name} {part}", target) for part in ("a", "b", "shortcut", "output")
        )
        self.gradient = plan.value(f"{name} gradient", source)

    def forward(self) -> None:
        """In training, and there the last batch norm and the sum have a kernel of their own."""
        self._first()
        self.plan.launch(self.conv_b.name, [self.a], [self.b], [self.conv_b])
        self.plan.launch(f"{self.name} sum", [self.b, self.short], [self.output])

    def evaluate(self) -> None:
        """The sum is the last convolution's epilogue."""
        self._first()
        self.plan.launch(self.conv_b.name, [self.a, self.short], [self.output], [self.conv_b])

    def _first(self) -> None:
        """The two convolutions that read the input."""
        convs = [self.conv_a, self.shortcut]
        self.plan.launch(f"{self.name} a and shortcut", [self.input], [self.a, self.short], convs)

    def backward(self, gradient: Value) -> Value:
        """A kernel for the data of those that read one tensor, and one for their weights."""
        plan, name = self.plan, self.name
        of_a = Value(f"{name} gradient of a", self.a.bytes)
        of_b = Value(f"{name} gradient of b", self.b.bytes)
        plan.sums(f"{name} sums of b", gradient, self.b)
        plan.launch(f"{name} norm of b", [gradient, self.b], [of_b])
        plan.launch(f"{name} gradient of a", [of_b, self.a], [of_a], [self.conv_b])
        plan.weight_gradients(f"{name} weight of b", [self.a, of_b], [self.conv_b])
        convs = [self.conv_a, self.shortcut]
        reads = [of_a, self.a, self.input, gradient]
        plan.launch(f"{name} gradient of input", reads, [self.gradient], convs)
        reads = [self.input, of_a, self.a, gradient]
        plan.weight_gradients(f"{name} weights of a and shortcut", reads, convs)
        return self.gradient


def network(plan: Plan, codes: tuple[int, ...], images: int, *, training: bool) -> None:
    """A whole step if training, else a scoring pass; `codes` are the edges' operation codes."""
    pixels = Value("bytes of images", 3 * images * 32 * 32)
    batch = plan.value("images", Shape(images, 3, 32))
    plan.launch("batch", [pixels], [batch])
    shape = Shape(images, 16, 32)
    stem = Convolution("stem", Shape(images, 3, 32), shape, 3)
    raw, value = plan.value("stem raw", shape), plan.value("stem output", shape)
    plan.launch("stem", [batch], [raw if training else value], [stem])
    if training:
        plan.launch("stem norm", [raw], [value])
    blocks: list[Cell | Reduction] = []
    for stage in range(STAGES):
        for i in range(CELLS_PER_STAGE + (stage > 0)):
            if stage and i == 0:
                target = Shape(images, 2 * shape.channels, shape.size // 2)
                blocks.append(Reduction(plan, f"reduction {stage}", shape, target, value))
                shape = target
            else:
                blocks.append(Cell(plan, f"cell {stage}.{i}", codes, shape, value))
            value = blocks[-1].output
            blocks[-1].forward() if training else blocks[-1].evaluate()
    normal = plan.value("head", shape)
    plan.launch("head norm", [value], [normal])
    plan.launch(HEAD_FORWARD[0], [normal], [])
    if not training:
        plan.small(HEAD_FORWARD[1])
        return
    plan.small(*HEAD_FORWARD[1:], *(f"{name} backward" for name in HEAD_BACKWARD[:-1]))
    spread, gradient = plan.value("gradient of head", shape), plan.value("gradient", shape)
    plan.launch(f"{HEAD_BACKWARD[-1]} backward", [], [spread])
    plan.sums("head sums", spread, value)
    plan.launch("head norm backward", [spread, value], [gradient])
    before: Value | None = gradient
    for block in reversed(blocks):
        before = block.backward(before) if before is not None else None
    if before is not None:
        of_raw = Value("gradient of stem raw", raw.bytes)
        plan.sums("stem sums", before, raw)
        plan.launch("stem norm backward", [before, raw], [of_raw])
        plan.weight_gradients("stem weight", [batch, of_raw], [stem])
    plan.optimizer()
