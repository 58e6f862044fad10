"""Bad arguments of the networks: one line that names operation, argument, wanted and got."""

import re
from typing import Any

import pytest
import torch
from network_cases import assert_same_state, build, busy_arch, every_network, images_for, snapshot

import cwkernels as cw

FULL = cw.spaces.nb201("full")


def one_line(line: str) -> str:
    return f"^{re.escape(line)}$"


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        (
            {"space": cw.spaces.macro()},
            TypeError,
            "networks.nb201: space: wanted cw.spaces.nb201(...), got Macro",
        ),
        (
            {"space": "full"},
            TypeError,
            "networks.nb201: space: wanted cw.spaces.nb201(...), got str",
        ),
        ({"channels": 0}, ValueError, "networks.nb201: channels must be an int >= 1, got 0"),
        ({"channels": "16"}, TypeError, "networks.nb201: channels must be an int >= 1, got '16'"),
        (
            {"cells_per_stage": 2.0},
            TypeError,
            "networks.nb201: cells_per_stage must be an int >= 1, got 2.0",
        ),
        (
            {"num_classes": -1},
            ValueError,
            "networks.nb201: num_classes must be an int >= 1, got -1",
        ),
    ],
)
def test_nb201(arguments: dict[str, Any], error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=one_line(line)):
        cw.networks.nb201(**({"space": FULL} | arguments))


@pytest.mark.parametrize(
    ("num_classes", "error", "got"), [(0, ValueError, "0"), (None, TypeError, "None")]
)
def test_macro(num_classes: Any, error: type[Exception], got: str) -> None:
    line = f"networks.macro: num_classes must be an int >= 1, got {got}"
    with pytest.raises(error, match=one_line(line)):
        cw.networks.macro(num_classes=num_classes)


@every_network
@pytest.mark.parametrize(
    ("decisions", "error", "wanted", "got"),
    [
        ([2, -1], ValueError, "an int >= 0", "-1"),
        ([9], ValueError, "a decision in 0..LAST", "9"),
        ([1, 2.5], TypeError, "an int >= 0", "2.5"),
        (2, TypeError, "an iterable of decisions or None", "2"),
        ("24", TypeError, "an iterable of decisions or None", "'24'"),
    ],
)
def test_split(name: str, decisions: Any, error: type[Exception], wanted: str, got: str) -> None:
    net = build(name)
    state = snapshot(net)
    wanted = wanted.replace("LAST", str(net.space.num_decisions - 1))
    with pytest.raises(error, match=one_line(f"split: decisions must be {wanted}, got {got}")):
        net.split(decisions=decisions)
    assert_same_state(net.state_dict(), state)


@every_network
def test_architectures(name: str) -> None:
    net, images, arch = build(name), images_for(), busy_arch(name)
    total = len(arch)
    largest = net.space.num_candidates[0] - 1
    shapes = f"int64 [{total}] or [A, {total}], A at least 1"
    state = snapshot(net)
    for bad, error, line in (
        (arch.tolist(), TypeError, "space.check: arch must be an int64 tensor, got list"),
        (arch.int(), TypeError, "space.check: arch must be int64, got torch.int32"),
        (
            arch[:-1],
            ValueError,
            f"space.check: arch must be of shape [..., {total}], got [{total - 1}]",
        ),
        (
            torch.full_like(arch, largest + 1),
            ValueError,
            f"space.check: arch must be in 0..{largest} at [0], got {largest + 1}",
        ),
        (
            torch.stack([arch, arch - 4]),
            ValueError,
            f"space.check: arch must be in 0..{largest} at [1, 0], got {int(arch[0]) - 4}",
        ),
        (
            arch[None, None],
            ValueError,
            f"forward: arch: wanted {shapes}, got [1, 1, {total}]",
        ),
        (arch[None][:0], ValueError, f"forward: arch: wanted {shapes}, got [0, {total}]"),
    ):
        with pytest.raises(error, match=one_line(line)):
            net(images, bad)
    assert_same_state(net.state_dict(), state)


@every_network
def test_images(name: str) -> None:
    net, images, arch = build(name), images_for(), busy_arch(name)
    two = torch.stack([arch, arch])
    one, several = "[N, 3, H, W]", "[N, 3, H, W] or [2, N, 3, H, W]"
    state = snapshot(net)
    for bad, archs, wanted in (
        (images[0], arch, one),
        (images[None], arch, one),
        (images[:, :2], arch, one),
        (images[:0], arch, one),
        (images[:, :, :0], arch, one),
        (images[None, None], two, several),
        (images_for(3, 4), two, several),
        (images[None], two, several),
    ):
        line = f"forward: images: wanted {wanted}, got {list(bad.shape)}"
        with pytest.raises(ValueError, match=one_line(line)):
            net(bad, archs)
    with pytest.raises(
        TypeError, match=one_line(f"forward: images: wanted a tensor {one}, got ndarray")
    ):
        net(images.numpy(), arch)
    assert_same_state(net.state_dict(), state)


@every_network
@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8, torch.bfloat16])
def test_images_of_another_type(name: str, dtype: torch.dtype) -> None:
    net = build(name)
    state = snapshot(net)
    line = f"forward: images: wanted torch.float32, the network's own, got {dtype}"
    with pytest.raises(TypeError, match=one_line(line)):
        net(images_for().to(dtype), busy_arch(name))
    assert_same_state(net.state_dict(), state)


@every_network
def test_one_value_a_channel_cannot_be_normalised(name: str) -> None:
    net = build(name)
    with pytest.raises(ValueError, match=r"wanted more than one value per channel in training"):
        net(images_for(1, size=1), busy_arch(name))
    assert net.eval()(images_for(1, size=4), busy_arch(name)).shape == (1, 10)
