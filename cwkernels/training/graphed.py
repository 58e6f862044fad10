"""GraphedStep: a whole training step in one CUDA graph that serves all architectures."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.data.augment import Augmentation, constants
from cwkernels.data.batches import Draw
from cwkernels.data.checks import require, require_images, require_vector
from cwkernels.networks import SuperNetwork
from cwkernels.ops.device_faults import raise_faults
from cwkernels.ops.select import runs_on
from cwkernels.optim import SGD
from cwkernels.training.step import Outcome, correct_of, loss_of

WARM_UP = 3
"""Steps before the capture: the optimizer makes its momenta, torch its handles."""


@dataclass(frozen=True)
class _Inputs:
    """What changes from step to step, in tensors that stay where they are.

    Attributes:
        arch: int64 [D] or [A, D].
        indices: int64 [N].
        shifts: int64 [N, 2].
        flips: bool [N].
        rates: float64 scalars, the learning rate of each group of the optimizer.
    """

    arch: Tensor
    indices: Tensor
    shifts: Tensor
    flips: Tensor
    rates: list[Tensor]


class _Captured(NamedTuple):
    """A graph, and where its replays leave what they measured."""

    graph: torch.cuda.CUDAGraph
    outcome: Outcome


class GraphedStep:
    """A training step, from images in memory to moved weights, that costs its host one launch.

    Equivalent to this, with the architecture read on the device only::

        batch = cw.data.make_batch(images, indices, augmentation)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(batch, arch), labels[indices])  # summed over architectures
        loss.backward()
        optimizer.step()

    The first steps run as they are; then one is captured in a CUDA graph, which all later ones
    replay. What differs between steps lies in tensors that the graph reads: architecture, image
    indices, augmentation, learning rates, the maps from choices to rows. So it goes on after
    `net.split()`, if the network was built with ``reserve=True``. Whatever else a graph cannot
    follow is noticed: tensors that moved, as at the split of a network without reserve, another
    momentum or weight decay, evaluation mode, another precision, autocast. Then it is captured
    again, after `WARM_UP` ordinary steps. Nothing waits for the device. Gradients are dropped after
    each step.

    Without CUDA every step runs as it is.

    Args:
        net: the network, in training mode at each step.
        optimizer: of this network.
        images: uint8 [M, 3, H, W], all images, on the device of the network.
        labels: int64 [M] there.
        batch_size: N, images in a step.
        architectures: A for steps that train several at once, None for one, [D].

    Attributes:
        captures: how many graphs have been captured.

    Raises:
        ValueError: if images, labels and network are not on one device, or do not fit together.
    """

    def __init__(
        self,
        net: SuperNetwork,
        optimizer: SGD,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        architectures: int | None = None,
    ) -> None:
        operation = "GraphedStep"
        require_images(operation, "images", images)
        require_vector(operation, "labels", labels, torch.int64, images, images.shape[0])
        device = net.classifier.weight.device
        require(images.device == device, operation, "images", f"images on {device}", images)
        require(batch_size >= 1, operation, "batch_size", "at least 1", batch_size)
        wanted = "None or at least 1"
        require(architectures != 0, operation, "architectures", wanted, architectures)
        self._net, self._optimizer = net, optimizer
        self._images, self._labels = images, labels
        self._inputs = _inputs(net, optimizer, batch_size, architectures)
        self._tensors = [*net.parameters(), *net.buffers()]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._captured: _Captured | None = None
        self._baked: tuple[object, ...] = ()
        self._warmed = 0
        self.captures = 0

    def step(
        self, arch: Tensor, indices: Tensor, augmentation: Augmentation | None = None
    ) -> Outcome:
        """One step, at the learning rates of the optimizer's groups.

        Args:
            arch: int64 [D], or [A, D], anywhere; on a GPU it is not read on the host.
            indices: int64 [N], of the images; anywhere.
            augmentation: N draws, anywhere; None for none.

        Returns:
            Two scalars, which the next step overwrites: the loss, the mean over images summed over
            architectures, and how many predictions were right.

        Raises:
            ValueError: for what has another shape or dtype, and for a choice out of range that an
                earlier step was given.
        """
        self._take(arch, indices, augmentation)
        raise_faults(self._images.device)
        self._optimizer.follow_splits()
        if self._stream is None:
            return self._run()
        baked = self._bakes()
        if baked != self._baked:
            self._baked, self._captured, self._warmed = baked, None, 0
        if self._captured is None and self._warmed < WARM_UP:
            return self._warm_up(self._stream)
        if self._captured is None:
            self._captured = self._capture(self._stream)
        self._captured.graph.replay()
        return self._captured.outcome

    def __call__(self, draw: Draw, archs: Tensor) -> Outcome:
        """The same as `cw.training.Step` says, for `Trainer`."""
        arch = archs if self._inputs.arch.dim() == 2 else archs.squeeze(0)
        return self.step(arch, draw.indices, draw.augmentation)

    def _take(self, arch: Tensor, indices: Tensor, augmentation: Augmentation | None) -> None:
        """Copies what a step is given to where the graph reads it."""
        inputs = self._inputs
        pairs = [("arch", inputs.arch, arch), ("indices", inputs.indices, indices)]
        if augmentation is not None:
            own = inputs.shifts.unbind(1)
            pairs += [("augmentation.dy", own[0], augmentation.dy)]
            pairs += [("augmentation.dx", own[1], augmentation.dx)]
            pairs += [("augmentation.flip", inputs.flips, augmentation.flip)]
        for name, to, given in pairs:
            wanted = f"{to.dtype} {list(to.shape)}"
            ok = (given.dtype, given.shape) == (to.dtype, to.shape)
            require(ok, "GraphedStep.step", name, wanted, given)
        for _, to, given in pairs:
            to.copy_(given, non_blocking=True)
        if augmentation is None:
            inputs.shifts.zero_()
            inputs.flips.zero_()
        for rate, group in zip(inputs.rates, self._optimizer.param_groups, strict=True):
            rate.copy_(group["lr"]) if isinstance(group["lr"], Tensor) else rate.fill_(group["lr"])

    def _run(self) -> Outcome:
        """The step itself, on the fixed inputs."""
        inputs = self._inputs
        mean, deviation = constants(self._images.device)
        images = ops.batch(
            self._images,
            inputs.indices,
            inputs.shifts,
            inputs.flips,
            mean=mean,
            deviation=deviation,
        )
        labels = self._labels.index_select(0, inputs.indices)
        net = self._net
        by_pointer = runs_on(inputs.arch.device)
        selected = net.select_on_device(inputs.arch) if by_pointer else inputs.arch
        # Before backward: gradients that it makes anew lie in the graph's own memory.
        self._optimizer.zero_grad()
        logits = net(images, selected)
        one = logits.dim() == 2
        loss = F.cross_entropy(logits, labels) if one else loss_of(logits, labels)
        loss.backward()
        with self._rates_on_device():
            self._optimizer.step()
        self._optimizer.zero_grad()
        return Outcome(loss.detach(), correct_of(logits, labels))

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        groups = self._optimizer.param_groups
        given = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, self._inputs.rates, strict=True):
                group["lr"] = rate
            yield
        finally:
            for group, lr in zip(groups, given, strict=True):
                group["lr"] = lr

    def _warm_up(self, stream: torch.cuda.Stream) -> Outcome:
        """A step as it is, on the stream of the capture."""
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            outcome = self._run()
        current.wait_stream(stream)
        self._warmed += 1
        self._baked = self._bakes()  # the optimizer made its momenta
        return outcome

    def _capture(self, stream: torch.cuda.Stream) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            outcome = self._run()
        self.captures += 1
        return _Captured(graph, outcome)

    def _bakes(self) -> tuple[object, ...]:
        """All that a captured graph has taken as it was: addresses, numbers, modes."""
        net, optimizer, device = self._net, self._optimizer, self._images.device.type
        states = [list(state.values()) for state in optimizer.state.values()]
        kept = [own.data_ptr() for state in states for own in state if isinstance(own, Tensor)]
        numbers = [(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups]
        return (
            [tensor.data_ptr() for tensor in self._tensors],
            [map.data_ptr() for map in net.maps_on_device()],
            kept,
            numbers,
            net.training,
            net.statistics_momentum,
            ops.current_backend(),
            ops.current_float32_conv_precision(),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )


def _inputs(
    net: SuperNetwork, optimizer: SGD, batch_size: int, architectures: int | None
) -> _Inputs:
    like = net.classifier.weight
    decisions = net.space.num_decisions
    shape = (decisions,) if architectures is None else (architectures, decisions)
    return _Inputs(
        like.new_zeros(shape, dtype=torch.int64),
        like.new_zeros(batch_size, dtype=torch.int64),
        like.new_zeros((batch_size, 2), dtype=torch.int64),
        like.new_zeros(batch_size, dtype=torch.bool),
        [like.new_zeros((), dtype=torch.float64) for _ in optimizer.param_groups],
    )
