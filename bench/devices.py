"""Where a benchmark computes: `--device cpu`, `cuda`, or `emulated` to try a benchmark out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cwkernels.testing.emulated import emulated

DEVICES = ("cpu", "cuda", "emulated")


@contextmanager
def benchmark_device(name: str) -> Iterator[torch.device]:
    """The device of a benchmark, set up as a rival would have it.

    On a GPU cuDNN measures its algorithms once for each shape, and float32 convolutions and matrix
    products of stock torch run in TF32, as ours do at precision "high".
    """
    if name == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = True
        yield torch.device("cuda", torch.cuda.current_device())
    elif name == "emulated":
        with emulated():
            yield torch.device("cpu")
    else:
        yield torch.device("cpu")
