"""The kernels of a NAS-Bench-Macro network: stem, inverted bottlenecks, head.

A bottleneck is expand, depthwise, project and a kernel that normalises the result and adds the
input; each normalises and rectifies where it reads. Two hidden tensors are kept, both raw.
"""

from dataclasses import dataclass

from bench.launches import Convolution, Plan, Shape, Value
from bench.launches_nb201 import HEAD_BACKWARD, HEAD_FORWARD
from cwkernels.spaces.macro import BOTTLENECKS, HEAD, IDENTITY, LAYERS, STEM, Layer


@dataclass(frozen=True)
class Step:
    """One convolution of a layer, what it reads and its raw output."""

    conv: Convolution
    source: Value
    raw: Value


class Block:
    """Convolutions in a row, each with a batch norm; the output is normalised, plus the input.

    Args:
        plan: where launches go.
        name: of the layer.
        input: what it reads.
        convolutions: in their order.
        residual: whether the input is added to the output.
    """

    def __init__(
        self,
        plan: Plan,
        name: str,
        input: Value,
        convolutions: list[Convolution],
        *,
        residual: bool,
    ) -> None:
        self.plan, self.name, self.input, self.residual = plan, name, input, residual
        self.steps: list[Step] = []
        source = input
        for conv in convolutions:
            raw = plan.value(f"{conv.name} raw", conv.target)
            self.steps.append(Step(conv, source, raw))
            source = raw
        self.output = plan.value(f"{name} output", convolutions[-1].target)

    def forward(self) -> None:
        """In training."""
        for step in self.steps:
            self.plan.launch(step.conv.name, [step.source], [step.raw], [step.conv])
        added = [self.input] if self.residual else []
        self.plan.launch(f"{self.name} norm", [self.steps[-1].raw, *added], [self.output])

    def evaluate(self) -> None:
        """Without gradients: the last normalises in its epilogue and adds the input."""
        for step in self.steps:
            last = step is self.steps[-1]
            added = [self.input] if last and self.residual else []
            written = self.output if last else step.raw
            self.plan.launch(step.conv.name, [step.source, *added], [written], [step.conv])

    def backward(self, gradient: Value, *, input_too: bool = True) -> Value:
        """A kernel for a convolution's data and one for its weights; for both if depthwise."""
        plan, name = self.plan, self.name
        plan.sums(f"{name} sums", gradient, self.steps[-1].raw)
        after = gradient
        for step in reversed(self.steps):
            # What a batch norm gives is computed again where it is read, from these two.
            normal = [after, step.raw]
            weight = f"{step.conv.name} weight"
            first = step is self.steps[0]
            if not step.conv.depthwise:
                plan.weight_gradients(weight, [step.source, *normal], [step.conv])
            if first and not input_too:
                break
            before = Value(f"{step.conv.name} gradient", step.source.bytes)
            # The mask and sums of the batch norm before need its raw values.
            mask = [] if first else [step.source]
            added = [gradient] if first and self.residual else []
            data = f"{step.conv.name} data"
            written, work = [before], [step.conv]
            if step.conv.depthwise:  # few enough weights to sum up beside the data's tile
                written.append(step.conv.gradient)
                work.append(step.conv)
                plan.weights.append(step.conv.weight)
            plan.launch(data, [*normal, *mask, *added], written, work)
            after = before
        return after


def layer_block(
    plan: Plan, name: str, code: int, layer: Layer, images: int, input: Value
) -> Block | None:
    """What a layer runs; None where it passes its input on."""
    source = Shape(images, layer.in_channels, layer.input_size)
    target = Shape(images, layer.out_channels, layer.output_size)
    if code == IDENTITY:
        if layer.keeps_shape:
            return None
        projection = Convolution(f"{name} projection", source, target, 1)
        return Block(plan, name, input, [projection], residual=False)
    bottleneck = BOTTLENECKS[code]
    hidden = bottleneck.expansion * layer.in_channels
    wide, small = Shape(images, hidden, source.size), Shape(images, hidden, target.size)
    convolutions = [
        Convolution(f"{name} expand", source, wide, 1),
        Convolution(f"{name} depthwise", wide, small, bottleneck.kernel_size, depthwise=True),
        Convolution(f"{name} project", small, target, 1),
    ]
    return Block(plan, name, input, convolutions, residual=layer.keeps_shape)


def network(plan: Plan, codes: tuple[int, ...], images: int, *, training: bool) -> None:
    """A whole step if training, else a scoring pass; `codes` are the layers' operation codes."""
    pixels = Value("bytes of images", 3 * images * 32 * 32)
    batch = plan.value("images", Shape(images, 3, 32))
    plan.launch("batch", [pixels], [batch])
    wide = Shape(images, STEM.out_channels, STEM.output_size)
    stem = Convolution("stem", Shape(images, 3, 32), wide, 3)
    blocks = [Block(plan, "stem", batch, [stem], residual=False)]
    for d, (code, layer) in enumerate(zip(codes, LAYERS, strict=True)):
        block = layer_block(plan, f"layer {d}", code, layer, images, blocks[-1].output)
        blocks += [block] if block is not None else []
    narrow = Shape(images, HEAD.in_channels, HEAD.output_size)
    last = Shape(images, HEAD.out_channels, HEAD.output_size)
    head = Convolution("head", narrow, last, 1)
    blocks.append(Block(plan, "head", blocks[-1].output, [head], residual=False))
    for block in blocks:
        block.forward() if training else block.evaluate()
    plan.launch(HEAD_FORWARD[0], [blocks[-1].output], [])
    if not training:
        plan.small(HEAD_FORWARD[1])
        return
    plan.small(*HEAD_FORWARD[1:], *(f"{name} backward" for name in HEAD_BACKWARD[:-1]))
    gradient = plan.value("gradient of head", last)
    plan.launch(f"{HEAD_BACKWARD[-1]} backward", [], [gradient])
    for block in reversed(blocks):
        gradient = block.backward(gradient, input_too=block is not blocks[0])
    plan.optimizer()
