"""Samplers: chi-square, strict fairness by count, and the sequence as a function of its number."""

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from cwkernels import spaces
from cwkernels.spaces.space import Decision, Space
from cwkernels.training import Sampler, make_sampler
from cwkernels.training.samplers import SamplerName

DRAWS = 6000
NAMES: tuple[SamplerName, ...] = ("uniform", "strict_fair", "balanced")

every_sampler = pytest.mark.parametrize("name", NAMES)
seeds = pytest.mark.parametrize("seed", range(3))


def weighted(space: Space, archs: Tensor) -> Tensor:
    """The number of weighted candidates of each architecture."""
    is_weighted = torch.tensor([[c.weighted for c in d.candidates] for d in space.decisions])
    return is_weighted[torch.arange(space.num_decisions), archs].sum(-1)


def counts(values: Tensor, length: int) -> list[int]:
    occurrences: list[int] = torch.bincount(values, minlength=length).tolist()
    return occurrences


@seeds
def test_uniform_is_uniform(seed: int) -> None:
    space = spaces.nb201("only_conv")
    archs = make_sampler("uniform", space, seed).draw(0, DRAWS)
    index = torch.as_tensor(space.index(archs))
    assert chisquare(counts(index, len(space))).pvalue > 1e-3


@seeds
def test_balanced_is_uniform_in_the_number_of_convolutions_and_within_it(seed: int) -> None:
    space = spaces.nb201("no_zero")
    archs = make_sampler("balanced", space, seed).draw(0, DRAWS)
    number = weighted(space, archs)
    assert chisquare(counts(number, 7)).pvalue > 1e-3
    # Without convolutions there are two candidates on each of six edges.
    none = archs[number == 0]
    places = torch.unique(torch.as_tensor(space.index(none)), return_counts=True)[1]
    assert len(places) == 2**6
    assert chisquare(places.tolist()).pvalue > 1e-3


@seeds
def test_uniform_is_not_balanced(seed: int) -> None:
    """What the tests above can tell apart."""
    space = spaces.nb201("no_zero")
    archs = make_sampler("uniform", space, seed).draw(0, DRAWS)
    assert chisquare(counts(weighted(space, archs), 7)).pvalue < 1e-6


@pytest.mark.parametrize("space", [spaces.macro(), spaces.nb201("full"), spaces.nb201("only_conv")])
def test_strict_fairness_in_every_round(space: Space) -> None:
    sampler = make_sampler("strict_fair", space, 5)
    for d, size in enumerate(space.num_candidates):
        archs = sampler.draw(0, 40 * size)
        for start in range(0, len(archs), size):
            assert sorted(archs[start : start + size, d].tolist()) == list(range(size))


@seeds
def test_strict_fair_rounds_are_random_permutations(seed: int) -> None:
    space = spaces.macro()
    archs = make_sampler("strict_fair", space, seed).draw(0, DRAWS)
    rounds = archs.view(-1, 3, 8)
    order = rounds[:, 0] * 3 + rounds[:, 1]  # the first two say all of a permutation of three
    for d in range(8):
        occurrences = [own for own in counts(order[:, d], 9) if own]
        assert len(occurrences) == 6
        assert chisquare(occurrences).pvalue > 1e-3
    together = torch.unique(rounds[:, 0, 0] * 3 + rounds[:, 0, 1], return_counts=True)[1]
    assert chisquare(together.tolist()).pvalue > 1e-3


class Mixed(Space):
    """Decisions of two and of three candidates."""

    def parse(self, string: str) -> Tensor:
        raise NotImplementedError

    def format(self, arch: Tensor) -> str:
        raise NotImplementedError


def test_strict_fairness_where_decisions_differ() -> None:
    first, second = spaces.macro().decisions[:2]
    two = Decision("two", first.candidates[:2], ())
    space = Mixed("mixed", (two, Decision("three", second.candidates, (0,))))
    archs = make_sampler("strict_fair", space, 0).draw(0, 36)
    for d, size in ((0, 2), (1, 3)):
        for start in range(0, 36, size):
            assert sorted(archs[start : start + size, d].tolist()) == list(range(size))


def sequence(sampler: Sampler, pieces: list[int]) -> Tensor:
    starts = [sum(pieces[:i]) for i in range(len(pieces))]
    return torch.cat([sampler.draw(a, b) for a, b in zip(starts, pieces, strict=True)])


@every_sampler
def test_the_sequence_does_not_depend_on_how_it_is_drawn(name: SamplerName) -> None:
    space = spaces.nb201("full")
    whole = make_sampler(name, space, 1).draw(0, 300)
    assert torch.equal(sequence(make_sampler(name, space, 1), [7] * 42 + [6]), whole)
    late = make_sampler(name, space, 1)
    torch.manual_seed(99)
    assert torch.equal(late.draw(251, 20), whole[251:271])
    assert torch.equal(late.draw(3, 20), whole[3:23])


@every_sampler
def test_seeds_differ(name: SamplerName) -> None:
    space = spaces.nb201("full")
    first, second = (make_sampler(name, space, seed).draw(0, 50) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="make_sampler: name: wanted 'uniform' or 'strict_fair'"):
        make_sampler("fair", spaces.macro(), 0)  # type: ignore[arg-type]
