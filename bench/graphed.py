"""Passes captured in a CUDA graph: what remains without the host's time."""

from collections.abc import Callable

import torch
from torch import Tensor

import cwkernels as cw
from bench.contestants import Contestant
from bench.experiment import Batch
from bench.harness import Action
from cwkernels.networks import SuperNetwork

WARM_UP = 3
"""Calls before the capture: cuDNN chooses its algorithms, the optimizer makes its momentum."""

Replay = Callable[[Tensor], object]
"""Takes an architecture."""


def captured(action: Action, device: torch.device) -> Action:
    """What replays `action`, with all that it reads where it lies.

    The graph is of one architecture and one batch: the rival is spared the copy of its images.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            action()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay


def step_of_all(contestant: Contestant, batch: Batch, architecture: Tensor) -> Replay:
    """Our training step in one graph for all architectures, which also makes the batch.

    Each replay is given its architecture on the host; what the rival of one graph for each is
    spared. Images are random ones in the sizes of `batch`.
    """
    net, optimizer = contestant.network, contestant.optimizer
    assert isinstance(net, SuperNetwork)
    assert isinstance(optimizer, cw.optim.SGD)
    count, device = len(batch.labels), batch.images.device
    images = torch.randint(256, batch.images.shape, dtype=torch.uint8, device=device)
    step = cw.training.GraphedStep(net, optimizer, images, batch.labels, batch_size=count)
    indices = torch.arange(count, device=device)

    def run(architecture: Tensor) -> None:
        with contestant.context():
            step.step(architecture, indices)

    while not step.captures:
        run(architecture)
    return run


def pass_of_all(contestant: Contestant, batch: Batch, architecture: Tensor) -> Replay:
    """Our forward pass without gradients, in one graph for all architectures and one batch."""
    device = batch.images.device
    images = batch.images.contiguous(memory_format=contestant.memory_format)
    chosen = architecture.to(device)
    replay = captured(lambda: contestant.infer(images, chosen), device)

    def run(architecture: Tensor) -> None:
        chosen.copy_(architecture, non_blocking=True)
        replay()

    return run
