"""A rival's pass captured in a CUDA graph: what remains of stock torch without its host's time."""

import torch

from bench.harness import Action

WARM_UP = 3
"""Calls before the capture: cuDNN chooses its algorithms, the optimizer makes its momentum."""


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
