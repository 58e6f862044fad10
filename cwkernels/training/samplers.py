"""Which architectures train, one after another: a function of the seed and their number alone.

So a run that resumes draws what it would have drawn, whatever was drawn before.
"""

from collections.abc import Iterator
from math import lcm
from typing import Literal, Protocol

import torch
from torch import Tensor

from cwkernels.data.seeds import ARCHITECTURES, seeded_generator
from cwkernels.spaces.space import Space

SamplerName = Literal["uniform", "strict_fair", "balanced"]


class Sampler(Protocol):
    """An endless sequence of architectures."""

    def draw(self, start: int, count: int) -> Tensor:
        """Architectures ``start … start + count − 1`` of the sequence, int64 [count, D]."""


def make_sampler(name: SamplerName, space: Space, seed: int) -> Sampler:
    """A sampler by its name: `Uniform`, `StrictFair` or `Balanced`.

    Raises:
        ValueError: for another name, or a negative seed.
    """
    samplers: dict[str, type[Uniform | StrictFair | Balanced]] = {
        "uniform": Uniform,
        "strict_fair": StrictFair,
        "balanced": Balanced,
    }
    if name not in samplers:
        wanted = " or ".join(map(repr, samplers))
        raise ValueError(f"make_sampler: name: wanted {wanted}, got {name!r}")
    return samplers[name](space, seed)


class _Blocks:
    """A sequence that is made block by block, each from a generator of its own."""

    block = 256

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self._seed = seed
        self._made: tuple[int, Tensor] = (-1, torch.empty(0))

    def draw(self, start: int, count: int) -> Tensor:
        """See `Sampler`."""
        return torch.stack([self._one(number) for number in range(start, start + count)])

    def _one(self, number: int) -> Tensor:
        block, place = divmod(number, self.block)
        if self._made[0] != block:
            generator = seeded_generator("sampler", self._seed, ARCHITECTURES, block)
            self._made = (block, self._make(generator))
        return self._made[1][place]

    def _make(self, generator: torch.Generator) -> Tensor:
        """The architectures of a block, int64 [block, D]."""
        raise NotImplementedError


class Uniform(_Blocks):
    """Every architecture equally likely (single-path one-shot, Guo et al. 2020)."""

    def _make(self, generator: torch.Generator) -> Tensor:
        return self.space.sample(self.block, generator=generator)


class StrictFair(_Blocks):
    """Of every m architectures in a row each takes another of a decision's m candidates.

    Strict fairness of FairNAS (Chu et al. 2019): per decision one random permutation after another,
    the decisions independent of each other. Rounds begin at architecture 0.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        # Whole rounds of every decision, so that none is cut at the end of a block.
        self.block = lcm(*space.num_candidates)

    def _make(self, generator: torch.Generator) -> Tensor:
        columns = [
            torch.cat([torch.randperm(m, generator=generator) for _ in range(self.block // m)])
            for m in self.space.num_candidates
        ]
        return torch.stack(columns, dim=-1)


class Balanced(_Blocks):
    """Every number of weighted candidates (convolutions) equally likely.

    First the number, uniformly among those that occur in the space, then an architecture with that
    number, uniformly. Uniform sampling hardly ever meets the extremes: one in 4000 architectures of
    NAS-Bench-201 has six convolutions, here one in seven.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self._classes = list(_by_weighted(space))

    def _make(self, generator: torch.Generator) -> Tensor:
        numbers = torch.randint(len(self._classes), (self.block,), generator=generator)
        places = torch.rand(self.block, generator=generator, dtype=torch.float64)
        return torch.stack(
            [
                self._classes[number][int(place * len(self._classes[number]))]
                for number, place in zip(numbers.tolist(), places.tolist(), strict=True)
            ]
        )


def _by_weighted(space: Space) -> Iterator[Tensor]:
    """The architectures of a space by their number of weighted candidates, [count, D] each."""
    archs = space.all()
    weighted = sum(
        torch.tensor([candidate.weighted for candidate in decision.candidates]).long()[archs[:, d]]
        for d, decision in enumerate(space.decisions)
    )
    for number in torch.as_tensor(weighted).unique():
        yield archs[weighted == number]
