"""NAS-Bench-201: names, strings, which convolutions are dead, the super-network's parameters."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import cwkernels as cw
from cwkernels.spaces.nb201 import (
    EDGES,
    input_reaches,
    live,
    reaches_output,
    supernet_parameters,
)

FULL = cw.spaces.nb201("full")
ALL = FULL.all()
CODES = ALL  # in the full space a choice is its own operation code
CONVOLUTION = (CODES == 2) | (CODES == 3)


def test_decisions_are_the_papers_paths() -> None:
    assert [d.name for d in FULL.decisions] == [
        "edge_0_1",
        "edge_0_2",
        "edge_1_2",
        "edge_0_3",
        "edge_1_3",
        "edge_2_3",
    ]
    # section 3.3 in path numbers from 1: paths 3 and 5 depend on path 1, path 6 on paths 2 and 3
    assert [tuple(p + 1 for p in d.predecessors) for d in FULL.decisions] == [
        (),
        (),
        (1,),
        (),
        (1,),
        (2, 3),
    ]


@pytest.mark.parametrize(
    ("subset", "names"),
    [
        ("full", "none skip_connect nor_conv_1x1 nor_conv_3x3 avg_pool_3x3"),
        ("no_zero", "skip_connect nor_conv_1x1 nor_conv_3x3 avg_pool_3x3"),
        ("only_conv", "nor_conv_1x1 nor_conv_3x3"),
    ],
)
def test_candidates(subset: str, names: str) -> None:
    for decision in cw.spaces.nb201(subset).decisions:
        assert " ".join(candidate.name for candidate in decision.candidates) == names
        weighted = [candidate.name for candidate in decision.candidates if candidate.weighted]
        assert weighted == ["nor_conv_1x1", "nor_conv_3x3"]


STRING = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"


def test_a_string_and_its_choices() -> None:
    assert FULL.parse(STRING).tolist() == [3, 0, 1, 4, 2, 3]
    assert FULL.format(torch.tensor([3, 0, 1, 4, 2, 3])) == STRING
    no_zero = cw.spaces.nb201("no_zero")
    string = STRING.replace("none", "skip_connect")
    assert no_zero.parse(string).tolist() == [2, 0, 0, 3, 1, 2]
    assert no_zero.codes(no_zero.parse(string)).tolist() == [3, 1, 1, 4, 2, 3]


@pytest.mark.parametrize(
    "string",
    [
        "",
        STRING + "|",
        STRING + "\n",
        STRING[1:],
        STRING.replace("~2", "~1"),
        STRING.replace("+", ""),
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|",
    ],
)
def test_strings_of_another_form(string: str) -> None:
    with pytest.raises(ValueError, match=r"^space.parse: string must be like "):
        FULL.parse(string)


@pytest.mark.parametrize(("subset", "name"), [("full", "nor_conv_5x5"), ("no_zero", "none")])
def test_strings_with_an_operation_that_the_space_lacks(subset: str, name: str) -> None:
    string = STRING.replace("none", name)
    wanted = r"^space.parse: string must be of the operations .*skip_connect.*, got "
    with pytest.raises(ValueError, match=wanted + f"'{name}'$"):
        cw.spaces.nb201(subset).parse(string)


@pytest.mark.parametrize("subset", ["Full", "", None, 3, ["full"]])
def test_other_subsets(subset: object) -> None:
    line = f"spaces.nb201: subset must be one of 'full', 'no_zero', 'only_conv', got {subset!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        cw.spaces.nb201(subset)  # type: ignore[arg-type]


def paths(start: int, end: int) -> Iterator[frozenset[int]]:
    """Every path from one node to another, as the set of its edges."""
    if start == end:
        yield frozenset()
    for edge, (source, target) in enumerate(EDGES):
        if source == start:
            yield from (rest | {edge} for rest in paths(target, end))


def some_path_is_open(start: int, end: int) -> Tensor:
    """Bool [15625]: whether some path from one node to another has no Zero on it."""
    closed = CODES == 0
    return torch.stack([~closed[:, list(p)].any(dim=1) for p in paths(start, end)]).any(dim=0)


def test_reachability_is_an_open_path() -> None:
    from_input = torch.stack([some_path_is_open(0, source) for source, _ in EDGES], dim=1)
    to_output = torch.stack([some_path_is_open(target, 3) for _, target in EDGES], dim=1)
    assert torch.equal(input_reaches(CODES), from_input)
    assert torch.equal(reaches_output(CODES), to_output)
    assert torch.equal(live(CODES), CONVOLUTION & from_input & to_output)


def test_a_convolution_is_live_where_the_output_depends_on_it() -> None:
    """A cell of scalars: convolutions scale by a positive weight, so that nothing cancels."""
    weight = torch.rand(
        CODES.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).add_(0.5)
    weight.requires_grad_()
    factor = torch.where(CONVOLUTION, weight, (CODES != 0).double())
    nodes = [torch.ones(len(CODES), dtype=torch.float64), *torch.zeros(3, len(CODES)).double()]
    for edge, (source, target) in enumerate(EDGES):
        nodes[target] = nodes[target] + nodes[source] * factor[:, edge]
    (gradient,) = torch.autograd.grad(nodes[3].sum(), weight)
    assert torch.equal(live(CODES), gradient != 0)


def test_how_many_convolutions_are_dead() -> None:
    """DESIGN section 2: 7.9 % cannot reach the output, and 7.2 % more have an input of zero."""
    lost = CONVOLUTION & ~reaches_output(CODES)
    unfed = CONVOLUTION & ~input_reaches(CODES)
    assert CONVOLUTION.sum() == 37_500
    assert lost.sum() == unfed.sum() == 2_950  # 7.9 % each, the cell being symmetric
    assert (lost & unfed).sum() == 250
    assert (unfed & ~lost).sum() == 2_700  # 7.2 %
    assert (CONVOLUTION & ~live(CODES)).sum() == 5_650  # 15.1 %


def sets_in_use(subset: str) -> set[tuple[int, int, int]]:
    """(decision, operation code, combination) of every weight set that is live somewhere."""
    space = cw.spaces.nb201(subset)
    archs = space.all()
    codes, alive = space.codes(archs), space.live(archs)
    used: set[tuple[int, int, int]] = set()
    for d in range(space.num_decisions):
        combination = space.combination(archs, d)
        rows = zip(codes[:, d].tolist(), combination.tolist(), alive[:, d].tolist(), strict=True)
        used |= {(d, code, number) for code, number, lives in rows if lives}
    return used


def test_six_sets_of_the_full_space_are_never_alive() -> None:
    every = {
        (d, code, combination)
        for d in range(6)
        for code in (2, 3)
        for combination in range(FULL.combinations(d))
    }
    assert len(every) == 76
    # paths 3 and 5 after Zero on path 1, path 6 after Zero on both of paths 2 and 3
    assert every - sets_in_use("full") == {(d, code, 0) for d in (2, 4, 5) for code in (2, 3)}


@pytest.mark.parametrize(("subset", "sets"), [("no_zero", 54), ("only_conv", 22)])
def test_without_zero_every_convolution_is_live(subset: str, sets: int) -> None:
    space = cw.spaces.nb201(subset)
    codes = space.codes(space.all())
    assert torch.equal(space.live(space.all()), (codes == 2) | (codes == 3))
    assert len(sets_in_use(subset)) == sets


@pytest.mark.parametrize("function", [live, input_reaches, reaches_output])
def test_bad_codes(function: Callable[[Tensor], Tensor]) -> None:
    name = f"nb201.{function.__name__}: codes must be "
    with pytest.raises(TypeError, match=f"^{name}int64, got torch.bool$"):
        function(CODES.bool())
    with pytest.raises(ValueError, match=re.escape(f"{name}of shape [..., 6], got [15625, 5]")):
        function(CODES[:, :5])
    with pytest.raises(ValueError, match=re.escape(f"{name}in 0..4 at [0, 0], got 5")):
        function(CODES + 5)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def conv(narrow: int, wide: int, kernel_size: int) -> nn.Module:
    return nn.Conv2d(narrow, wide, kernel_size, bias=False, device="meta")


def norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, device="meta")


def test_parameters_of_another_size_equal_those_of_torchs_modules() -> None:
    """8 channels, 3 cells, 7 classes, path 6 split: 25 sets there and one elsewhere."""

    def cell(c: int) -> int:
        return (5 + 25) * count(conv(c, c, 1), conv(c, c, 3)) + (5 + 25) * count(conv(c, c, 1))

    def reduction(c: int) -> int:
        wide = 2 * c
        convolutions = conv(c, wide, 3), conv(wide, wide, 3), conv(c, wide, 1)
        return count(*convolutions, norm(wide), norm(wide))

    expected = [count(conv(3, 8, 3), norm(8)), *[cell(8)] * 3, reduction(8), *[cell(16)] * 3]
    expected += [reduction(16), *[cell(32)] * 3, count(norm(32), nn.Linear(32, 7))]
    counted = supernet_parameters(
        FULL, split=[5], skip_projection=True, channels=8, cells_per_stage=3, num_classes=7
    )
    assert list(counted) == ["stem", *map(str, range(11)), "head"]
    assert list(counted.values()) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        ({"space": cw.spaces.macro()}, TypeError, "space must be a NAS-Bench-201 space, got Macro"),
        ({"channels": 0}, ValueError, "channels must be an int >= 1, got 0"),
        ({"cells_per_stage": 2.0}, TypeError, "cells_per_stage must be an int >= 1, got 2.0"),
        ({"num_classes": -1}, ValueError, "num_classes must be an int >= 1, got -1"),
        ({"split": [6]}, ValueError, "split must be a decision in 0..5, got 6"),
    ],
)
def test_bad_arguments_of_supernet_parameters(
    arguments: dict[str, object], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=f"^nb201.supernet_parameters: {re.escape(line)}$"):
        supernet_parameters(**({"space": FULL} | arguments))  # type: ignore[arg-type]
