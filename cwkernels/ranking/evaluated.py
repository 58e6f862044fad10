"""Which architectures are ranked."""

import torch
from torch import Tensor

from cwkernels.data.seeds import EVALUATED, seeded_generator
from cwkernels.spaces import Space, checks


def evaluated_set(space: Space, count: int = 1000, seed: int = 0) -> Tensor:
    """The architectures on which super-networks of a space are compared, the same in every run.

    Args:
        space: the space.
        count: how many, drawn without replacement; a space that has no more is taken whole.
        seed: of the draw, not of a run.

    Returns:
        int64 ``[min(count, len(space)), D]`` in the order of ``space.index``.

    Raises:
        TypeError, ValueError: for a count below 1 or a negative seed.
    """
    count = checks.integer("evaluated_set", "count", count, at_least=1)
    if count >= len(space):
        return space.all()
    generator = seeded_generator("evaluated_set", seed, EVALUATED)
    index = torch.randperm(len(space), generator=generator)[:count]
    return space.all()[index.sort().values]
