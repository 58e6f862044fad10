"""How a run's seed becomes independent, resumable streams of random numbers."""

import numpy as np
import torch

from cwkernels.data.checks import require

# The first number of each stream's key. A new stream takes a new number: a changed one would
# change the draws of every recorded run.
DIVISION = 0
EPOCH = 1
GENERATED = 2
ARCHITECTURES = 3  # those that train
VALIDATED = 4  # those that validation runs
EVALUATED = 5


def seeded_generator(operation: str, seed: int, *key: int) -> torch.Generator:
    """A CPU generator for the stream ``key`` of the run ``seed``.

    The state is a hash (``numpy.random.SeedSequence``, fixed by NumPy across versions and
    machines) of seed and key together, so neighbouring seeds and epochs share nothing, the global
    generator is neither read nor moved, and a resumed run rebuilds any stream from its numbers.

    Raises:
        ValueError: a negative seed, in the name of ``operation``.
    """
    require(seed >= 0, operation, "seed", "at least 0", seed)
    # 32 bits: torch's CPU generator ignores the rest.
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(state[0]))
