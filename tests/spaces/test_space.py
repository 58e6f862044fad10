"""What every space promises: indices, iteration, sampling, combinations, weight sets."""

import re
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

import cwkernels as cw
from cwkernels.spaces import Candidate, Decision, Macro, Space
from cwkernels.testing import refused

SPACES: tuple[Space, ...] = (
    cw.spaces.nb201("full"),
    cw.spaces.nb201("no_zero"),
    cw.spaces.nb201("only_conv"),
    cw.spaces.macro(),
)
every_space = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)


def radix(space: Space) -> int:
    """The number of candidates, the same in each decision of these spaces."""
    return len(space.decisions[0].candidates)


@st.composite
def space_and_choices(draw: st.DrawFn) -> tuple[Space, list[int]]:
    space = draw(st.sampled_from(SPACES))
    choice = st.integers(0, radix(space) - 1)
    return space, draw(
        st.lists(choice, min_size=len(space.decisions), max_size=len(space.decisions))
    )


def digits(choices: list[int]) -> str:
    return "".join(map(str, choices))


@pytest.mark.parametrize(
    ("space", "name", "architectures", "decisions"),
    [
        (SPACES[0], "nb201_full", 15_625, 6),
        (SPACES[1], "nb201_no_zero", 4_096, 6),
        (SPACES[2], "nb201_only_conv", 64, 6),
        (SPACES[3], "macro", 6_561, 8),
    ],
)
def test_sizes(space: Space, name: str, architectures: int, decisions: int) -> None:
    assert space.name == name
    assert len(space) == architectures
    assert space.num_decisions == len(space.decisions) == decisions


@every_space
def test_all_lists_every_architecture_in_the_order_of_a_nested_loop(space: Space) -> None:
    nested = torch.tensor(list(product(range(radix(space)), repeat=space.num_decisions)))
    assert torch.equal(space.all(), nested)
    assert space.all().dtype == torch.int64


@every_space
def test_iteration_gives_all(space: Space) -> None:
    assert torch.equal(torch.stack(list(space)), space.all())


@every_space
def test_index_is_a_bijection_and_inverts_all(space: Space) -> None:
    index = space.index(space.all())
    assert isinstance(index, torch.Tensor)
    assert index.dtype == torch.int64
    assert torch.equal(index, torch.arange(len(space)))


@given(space_and_choices())
def test_index_is_the_number_whose_digits_are_the_choices(case: tuple[Space, list[int]]) -> None:
    space, choices = case
    index = space.index(torch.tensor(choices))
    assert type(index) is int
    assert index == int(digits(choices), base=radix(space))
    assert space[index].tolist() == choices
    assert space[index - len(space)].tolist() == choices


@given(space_and_choices())
def test_parse_inverts_format(case: tuple[Space, list[int]]) -> None:
    space, choices = case
    string = space.format(torch.tensor(choices))
    assert space.parse(string).tolist() == choices
    assert space.parse(string).dtype == torch.int64


@given(space_and_choices())
def test_codes_are_those_of_the_chosen_candidates(case: tuple[Space, list[int]]) -> None:
    space, choices = case
    pairs = zip(space.decisions, choices, strict=True)
    assert space.codes(torch.tensor(choices)).tolist() == [d.candidates[c].code for d, c in pairs]


@given(space_and_choices(), st.data())
def test_combination_is_the_number_of_the_predecessors_choices(
    case: tuple[Space, list[int]], data: st.DataObject
) -> None:
    space, choices = case
    d = data.draw(st.integers(0, space.num_decisions - 1))
    read = [choices[p] for p in space.decisions[d].predecessors]
    expected = int(digits(read), base=radix(space)) if read else 0
    assert space.combination(torch.tensor(choices), d).item() == expected


@every_space
def test_each_combination_occurs_equally_often(space: Space) -> None:
    archs = space.all()
    for d in range(space.num_decisions):
        numbers = space.combination(archs, d)
        assert numbers.dtype == torch.int64
        counts = torch.bincount(numbers)
        assert counts.tolist() == [len(space) // space.combinations(d)] * space.combinations(d)


@every_space
def test_several_dimensions_of_architectures(space: Space) -> None:
    archs = space.all()[:24].reshape(2, 3, 4, space.num_decisions)
    last = archs[1, 2, 3]
    assert torch.equal(space.check(archs), archs)
    index = space.index(archs)
    assert isinstance(index, torch.Tensor)
    assert index.shape == (2, 3, 4)
    assert index[1, 2, 3] == space.index(last)
    assert torch.equal(space.codes(archs)[1, 2, 3], space.codes(last))
    assert torch.equal(space.live(archs)[1, 2, 3], space.live(last))
    assert torch.equal(space.combination(archs, 2)[1, 2, 3], space.combination(last, 2))


@every_space
def test_no_architectures_at_all(space: Space) -> None:
    none = space.sample(0)
    assert none.shape == (0, space.num_decisions)
    assert none.dtype == torch.int64
    index = space.index(none)
    assert isinstance(index, torch.Tensor)
    assert index.shape == (0,)
    assert space.codes(none).shape == space.live(none).shape == none.shape


@every_space
def test_sampling_is_uniform_over_architectures(space: Space) -> None:
    draws = space.sample(20 * len(space), generator=torch.Generator().manual_seed(0))
    index = space.index(draws)
    assert isinstance(index, torch.Tensor)
    counts = torch.bincount(index, minlength=len(space))
    assert counts.min() > 0
    # with replacement: the counts are neither too uneven nor too even
    assert 1e-3 < chisquare(counts.numpy()).pvalue < 1 - 1e-3


@every_space
def test_sampling_follows_the_generator_alone(space: Space) -> None:
    def draw(seed: int, sizes: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([space.sample(n, generator=generator) for n in sizes])

    first = draw(3, [64])
    torch.rand(1)
    assert torch.equal(first, draw(3, [64]))
    assert torch.equal(first, draw(3, [1, 30, 0, 33]))
    assert not torch.equal(first, draw(4, [64]))


def test_sampling_without_a_generator_follows_torchs_seed() -> None:
    space = SPACES[0]
    torch.manual_seed(5)
    first = space.sample(64)
    torch.manual_seed(5)
    assert torch.equal(first, space.sample(64))
    assert not torch.equal(first, space.sample(64))


def test_architectures_are_on_the_cpu_whatever_the_default_device() -> None:
    space = SPACES[3]
    with torch.device("meta"):
        made = [space[7], space.all(), space.sample(2), space.parse("22212220")]
    assert {arch.device.type for arch in made} == {"cpu"}


@pytest.mark.parametrize(
    ("space", "before", "after"),
    [(SPACES[0], 12, 76), (SPACES[1], 12, 54), (SPACES[2], 12, 22), (SPACES[3], 16, 44)],
    ids=lambda value: getattr(value, "name", None),
)
def test_weight_sets_of_section_3_3(space: Space, before: int, after: int) -> None:
    assert space.weight_sets() == space.weight_sets(split=False) == before
    assert space.weight_sets(split=[]) == before
    assert space.weight_sets(split=True) == space.weight_sets(range(space.num_decisions)) == after


@every_space
def test_partial_splits_count_the_sets_that_can_be_told_apart(space: Space) -> None:
    for split in ([2], [5, 2], [1, 1, 4]):
        sets = {
            (d, candidate.name, combination)
            for d, decision in enumerate(space.decisions)
            for candidate in decision.candidates
            if candidate.weighted
            for combination in (space.combination(space.all(), d).tolist() if d in split else [0])
        }
        assert space.weight_sets(iter(split)) == len(sets)


def test_codes_mean_the_same_operation_in_every_nas_bench_201_space() -> None:
    full = {c.name: c for c in SPACES[0].decisions[0].candidates}
    assert [full[name].code for name in sorted(full, key=lambda name: full[name].code)] == [
        *range(5)
    ]
    for space in SPACES[:3]:
        for decision in space.decisions:
            assert all(full[candidate.name] == candidate for candidate in decision.candidates)
            codes = [candidate.code for candidate in decision.candidates]
            assert codes == sorted(codes)


def test_decisions_may_differ_in_their_number_of_candidates() -> None:
    a, b, c = (Candidate(name, weighted=name != "a", code=ord(name)) for name in "abc")
    decisions = (
        Decision("x", (a, b, c), ()),
        Decision("y", (c, b), ()),
        Decision("z", (b,), (0, 1)),
    )
    space = Macro("mixed", decisions)
    nested = [[i, j, 0] for i in range(3) for j in range(2)]
    assert space.all().tolist() == [space[i].tolist() for i in range(6)] == nested
    assert space.combinations(2) == 6
    for number, arch in enumerate(space):
        assert space.index(arch) == space.combination(arch, 2) == number
    assert "".join(map(chr, space.codes(space[4]))) == "ccb"
    assert space.live(space[1]).tolist() == [False, True, True]
    assert space.weight_sets() == 2 + 2 + 1
    assert space.weight_sets([2]) == 2 + 2 + 6


def test_a_decision_cannot_depend_on_a_later_one() -> None:
    candidates = (Candidate("a", weighted=True, code=0),)
    decisions = (Decision("x", candidates, ()), Decision("y", candidates, (1,)))
    with pytest.raises(ValueError, match=re.escape("decisions[1].predecessors must be")):
        Macro("loop", decisions)


@every_space
def test_a_space_is_found_by_its_name(space: Space) -> None:
    assert cw.spaces.named(space.name) == space


def test_another_name_is_refused() -> None:
    wanted = "one of macro, nb201_full, nb201_no_zero, nb201_only_conv"
    with refused(ValueError, f"spaces.named: name must be {wanted}, got 'nb201'"):
        cw.spaces.named("nb201")


def test_kernel_areas() -> None:
    cell = torch.tensor([[0, 1, 2, 3, 4, 3], [3, 3, 3, 3, 3, 3]])
    area = cw.spaces.nb201("full").kernel_area(cell)
    assert area.tolist() == [[0, 0, 1, 9, 0, 9], [9] * 6]
    small = cw.spaces.nb201("only_conv").kernel_area(torch.tensor([0, 1, 0, 1, 0, 1]))
    assert small.tolist() == [1, 9] * 3
    layers = cw.spaces.macro().kernel_area(torch.tensor([0, 1, 2, 0, 0, 0, 0, 2]))
    assert layers.tolist() == [0, 11, 27, 0, 0, 0, 0, 27]
