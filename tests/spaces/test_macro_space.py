"""NAS-Bench-Macro: names, strings, layers' shapes, and counts beside torch's own modules."""

import re
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import cwkernels as cw
from cwkernels.spaces.macro import (
    HEAD,
    LAYERS,
    STEM,
    Convolution,
    convolutions,
    flops,
    parameters,
    supernet_parameters,
)

SPACE = cw.spaces.macro()


def test_decisions_are_the_layers() -> None:
    assert [d.name for d in SPACE.decisions] == [f"layer_{i}" for i in range(8)]
    assert [d.predecessors for d in SPACE.decisions] == [(), *((i,) for i in range(7))]
    for decision in SPACE.decisions:
        facts = [(c.name, c.weighted, c.code) for c in decision.candidates]
        assert facts == [("identity", False, 0), ("k3_e3", True, 1), ("k5_e6", True, 2)]


def test_a_string_and_its_choices() -> None:
    assert SPACE.parse("22212220").tolist() == [2, 2, 2, 1, 2, 2, 2, 0]
    assert SPACE.format(torch.tensor([2, 2, 2, 1, 2, 2, 2, 0])) == "22212220"


@pytest.mark.parametrize(
    "string", ["", "2221222", "222122201", "22212223", "22212220\n", "٢2212220"]
)
def test_other_strings(string: str) -> None:
    line = f"space.parse: string must be eight digits of 0, 1, 2, got {string!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        SPACE.parse(string)


def test_every_bottleneck_is_live() -> None:
    assert torch.equal(SPACE.live(SPACE.all()), SPACE.all() != 0)


def test_layers_fit_together() -> None:
    assert (LAYERS[0].in_channels, LAYERS[0].input_size) == (STEM.out_channels, STEM.output_size)
    for before, after in pairwise(LAYERS):
        assert before.out_channels == after.in_channels
        assert before.output_size == after.input_size
    assert (LAYERS[-1].out_channels, LAYERS[-1].output_size) == (HEAD.in_channels, HEAD.output_size)
    assert [layer.out_channels for layer in LAYERS] == [64, 64, 128, 128, 128, 256, 256, 256]
    assert [i for i, layer in enumerate(LAYERS) if not layer.keeps_shape] == [0, 2, 5]
    assert all((layer.stride == 1) == layer.keeps_shape for layer in LAYERS)


def built(arch: list[int]) -> nn.Module:
    """The network that DESIGN section 2 describes, without residuals, which cost nothing."""

    def unit(narrow: int, wide: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
        padding = kernel // 2
        convolution = nn.Conv2d(narrow, wide, kernel, stride, padding, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(wide))

    modules = [unit(3, 32, 3)]
    channels = 32
    for choice, wide, stride in zip(
        arch, (64, 64, 128, 128, 128, 256, 256, 256), (2, 1, 2, 1, 1, 2, 1, 1), strict=True
    ):
        if choice == 0 and stride == 2:
            modules.append(unit(channels, wide, 1, stride=2))
        if choice != 0:
            kernel, hidden = {1: (3, 3 * channels), 2: (5, 6 * channels)}[choice]
            modules.append(unit(channels, hidden, 1))
            modules.append(unit(hidden, hidden, kernel, stride, groups=hidden))
            modules.append(unit(hidden, wide, 1))
        channels = wide
    head = unit(256, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 10)
    return nn.Sequential(*modules, *head).eval()


@pytest.mark.parametrize("string", ["00000000", "11111111", "22222222", "01202121"])
def test_counts_equal_those_of_torchs_modules(string: str) -> None:
    arch = SPACE.parse(string)
    with torch.device("meta"):
        network = built(arch.tolist())
        images = torch.empty(1, 3, 32, 32)
    assert parameters(arch) == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert 2 * flops(arch) == counter.get_total_flops()  # torch counts a multiply-add twice


def test_counts_of_several_architectures() -> None:
    archs = SPACE.all()[:12].reshape(3, 4, 8)
    for function in (parameters, flops):
        assert function(archs).dtype == torch.int64
        assert function(archs).shape == (3, 4)
        assert function(archs)[2, 1] == function(archs[2, 1])


def test_convolutions_of_a_layer() -> None:
    assert convolutions(LAYERS[1], 0) == ()
    assert convolutions(LAYERS[2], 0) == (Convolution(64, 128, 1, 8),)
    assert convolutions(LAYERS[2], 2) == (
        Convolution(64, 384, 1, 16),
        Convolution(384, 384, 5, 8, groups=384),
        Convolution(384, 128, 1, 8),
    )
    with pytest.raises(ValueError, match=r"^macro.convolutions: code must be in 0..2, got 3$"):
        convolutions(LAYERS[0], 3)


def test_a_partial_split_multiplies_its_layers_by_three() -> None:
    before, after = supernet_parameters(num_classes=7), supernet_parameters([0, 2], num_classes=7)
    assert list(after) == ["stem", *map(str, range(8)), "head"]
    assert after == before | {"2": 3 * 133_184}
    assert before["head"] == 256 * 1280 + 2 * 1280 + 1280 * 7 + 7


@pytest.mark.parametrize("function", [parameters, flops])
def test_bad_architectures_of_the_counts(function: Callable[[Tensor], Tensor]) -> None:
    name = f"macro.{function.__name__}: arch must be "
    arch = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(TypeError, match=f"^{name}int64, got torch.float32$"):
        function(arch.float())
    with pytest.raises(ValueError, match=re.escape(f"{name}of shape [..., 8], got [6]")):
        function(arch[:6])
    with pytest.raises(ValueError, match=re.escape(f"{name}in 0..2 at [0], got 3")):
        function(arch + 3)


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        ({"split": 2}, TypeError, "split must be a bool or an iterable of decisions, got 2"),
        ({"split": [8]}, ValueError, "split must be a decision in 0..7, got 8"),
        ({"num_classes": 0}, ValueError, "num_classes must be an int >= 1, got 0"),
    ],
)
def test_bad_arguments_of_supernet_parameters(
    arguments: dict[str, int], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=f"^macro.supernet_parameters: {re.escape(line)}$"):
        supernet_parameters(**arguments)  # type: ignore[arg-type]
