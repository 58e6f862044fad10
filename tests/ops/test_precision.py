"""The precision of float32 convolutions: for a while or for the process, kept for backward."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import cwkernels as cw
from cwkernels import ops
from cwkernels.ops.precision import Precision
from cwkernels.testing import dense_random, refused

COTANGENT = dense_random(8, 16, 8, 8, seed=2)
OTHER: dict[Precision, Precision] = {"high": "highest", "highest": "high"}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = ops.current_float32_conv_precision()
    yield
    ops.set_float32_conv_precision(before)


def call() -> tuple[Tensor, Tensor, Tensor]:
    """The output of a convolution that Winograd's algorithm takes, and both leaves."""
    images = dense_random(8, 16, 8, 8).requires_grad_()
    weight = dense_random(2, 16, 16, 3, 3, seed=1).requires_grad_()
    return ops.gather_conv(images, weight, torch.tensor(1), dense_grad=True), images, weight


def results(precision: Precision) -> list[Tensor]:
    """Output and gradients, all of it inside one block."""
    with cw.float32_conv_precision(precision):
        output, images, weight = call()
        output.backward(COTANGENT)
    assert images.grad is not None
    assert weight.grad is not None
    return [output.detach(), images.grad, weight.grad]


def precision_of(output: Tensor) -> Precision:
    """That with which `call` computed its output."""
    names: list[Precision] = ["high", "highest"]
    (name,) = [name for name in names if torch.equal(output, results(name)[0])]
    return name


def test_the_two_differ_in_all_that_is_computed() -> None:
    for high, highest in zip(results("high"), results("highest"), strict=True):
        assert not torch.equal(high, highest)


def test_high_is_the_default() -> None:
    assert ops.current_float32_conv_precision() == "high"
    assert precision_of(call()[0]) == "high"


def test_a_block_uses_its_precision_and_ends() -> None:
    with cw.float32_conv_precision("highest"):
        assert ops.current_float32_conv_precision() == "highest"
        assert precision_of(call()[0]) == "highest"
        with cw.float32_conv_precision("high"):
            assert precision_of(call()[0]) == "high"
        with pytest.raises(ZeroDivisionError), cw.float32_conv_precision("high"):
            _ = 1 // 0
        assert ops.current_float32_conv_precision() == "highest"
    assert ops.current_float32_conv_precision() == "high"


def test_the_process_has_a_default_that_blocks_override() -> None:
    cw.set_float32_conv_precision("highest")
    assert ops.current_float32_conv_precision() == "highest"
    assert precision_of(call()[0]) == "highest"
    with cw.float32_conv_precision("high"):
        assert precision_of(call()[0]) == "high"
    cw.set_float32_conv_precision("high")
    assert precision_of(call()[0]) == "high"


def in_a_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_a_block_is_of_its_thread_and_the_default_of_all() -> None:
    seen: list[Precision] = []
    with cw.float32_conv_precision("highest"):
        in_a_thread(lambda: seen.append(ops.current_float32_conv_precision()))
    cw.set_float32_conv_precision("highest")
    in_a_thread(lambda: seen.append(ops.current_float32_conv_precision()))
    assert seen == ["high", "highest"]


@pytest.mark.parametrize("precision", ["high", "highest"])
@pytest.mark.parametrize("in_another_thread", [False, True])
def test_backward_keeps_to_the_precision_of_forward(
    precision: Precision, in_another_thread: bool
) -> None:
    with cw.float32_conv_precision(precision):
        output, images, weight = call()

    def backward() -> None:
        with cw.float32_conv_precision(OTHER[precision]):
            output.backward(COTANGENT)

    if in_another_thread:
        in_a_thread(backward)
    else:
        backward()
    _, of_images, of_weight = results(precision)
    assert images.grad is not None
    assert weight.grad is not None
    assert torch.equal(images.grad, of_images)
    assert torch.equal(weight.grad, of_weight)


@pytest.mark.parametrize("name", ["", "medium", "HIGH", "tf32"])
def test_an_unknown_precision_is_refused(name: str) -> None:
    wanted = f"precision: wanted 'high' or 'highest', got {name!r}"
    with refused(ValueError, f"set_float32_conv_precision: {wanted}"):
        cw.set_float32_conv_precision(name)  # type: ignore[arg-type]
    with (
        refused(ValueError, f"float32_conv_precision: {wanted}"),
        cw.float32_conv_precision(name),  # type: ignore[arg-type]
    ):
        pass
    assert ops.current_float32_conv_precision() == "high"
