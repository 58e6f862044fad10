"""The pool that scratch comes from: its size, its reuse, its release, and its poison."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import cwkernels as cw
from cwkernels.testing import Call, assert_bitwise, evaluate, network_calls

CALLS = {call.operation: call for call in network_calls()}


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    """With one thread, so that all calls of a kind take the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cw.release_workspace()
    yield
    cw.release_workspace()
    torch.set_num_threads(before)


def convolve(images: int) -> Callable[[], Tensor]:
    """A direct convolution, whose weight gradient has a partial result for each chunk of images."""
    pixels = torch.ones(images, 16, 16, 16)
    bank = torch.ones(1, 16, 16, 3, 3, requires_grad=True)

    def run() -> Tensor:
        output = cw.ops.gather_conv(pixels, bank, torch.tensor(0), dense_grad=True)
        output.sum().backward()
        return output.detach()

    return run


def results(call: Call) -> dict[str, Tensor]:
    """Outputs and gradients, compact ones as ordinary tensors."""
    evaluated = evaluate(call.run, call.inputs(), call.cotangents())
    return {
        name: result.to_dense() if result.is_sparse else result
        for name, result in evaluated.items()
        if result is not None
    }


def test_a_pool_begins_empty_grows_and_is_released() -> None:
    assert cw.workspace_bytes() == 0
    convolve(2)()
    assert cw.workspace_bytes() > 0
    cw.release_workspace()
    assert cw.workspace_bytes() == 0


@pytest.mark.parametrize("call", CALLS.values(), ids=str)
def test_equal_calls_use_the_same_memory_again(call: Call) -> None:
    results(call)
    size = cw.workspace_bytes()
    for _ in range(3):
        results(call)
        assert cw.workspace_bytes() == size


def test_the_largest_call_is_what_the_pool_keeps() -> None:
    sizes = []
    for images in (1, 2, 8, 64):
        cw.release_workspace()
        convolve(images)()
        sizes.append(cw.workspace_bytes())
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    for images in (1, 64, 2, 8):
        convolve(images)()
    # One piece in place of another, not beside it.
    assert cw.workspace_bytes() == sizes[-1]


@pytest.mark.parametrize("call", CALLS.values(), ids=str)
def test_results_do_not_depend_on_what_the_memory_held(call: Call) -> None:
    expected = results(call)
    others = [results(call)]
    cw.release_workspace()
    others.append(results(call))
    torch.ops.cwkernels.poison_workspace(True)
    try:
        others.append(results(call))
    finally:
        torch.ops.cwkernels.poison_workspace(False)
    for other in others:
        assert other.keys() == expected.keys()
        for name, result in other.items():
            assert_bitwise(name, result, expected[name], nonzero=0)


def large_output(images: int, value: float = 1.0) -> Tensor:
    """An output of 64 KiB an image, filled with a value."""
    pixels, weight = torch.full((images, 1, 32, 32), value), torch.ones(16, 1, 1, 1)
    return cw.ops.conv_norm(pixels, weight)[0]


needs_from_blob = pytest.mark.skipif(
    torch.__version__.startswith("2.10"), reason="torch 2.10 has no tensors around memory of ours"
)


@needs_from_blob
def test_the_memory_of_a_large_tensor_is_kept_for_the_next() -> None:
    output = large_output(64)
    place, held = output.data_ptr(), cw.workspace_bytes()
    del output
    assert cw.workspace_bytes() >= held + 64 * 65536
    smaller, other = large_output(16), large_output(16)
    assert smaller.data_ptr() == place, "the block is split"
    assert place < other.data_ptr() < place + 64 * 65536
    del smaller, other
    assert large_output(64).data_ptr() == place, "its parts are one block again"


@needs_from_blob
def test_tensors_of_random_lives_never_share_memory() -> None:
    generator = torch.Generator().manual_seed(5)
    alive: list[tuple[float, Tensor]] = []
    for number in range(200):
        images = int(torch.randint(4, 64, (), generator=generator))
        alive.append((float(number), large_output(images, float(number))))
        while len(alive) > 12:
            place = int(torch.randint(len(alive), (), generator=generator))
            value, output = alive.pop(place)
            assert output.eq(value).all()
    places = sorted((t.data_ptr(), t.numel() * t.element_size()) for _, t in alive)
    for (one, size), (next_one, _) in pairwise(places):
        assert one + size <= next_one
    assert all(output.eq(value).all() for value, output in alive)


@needs_from_blob
def test_a_release_leaves_the_memory_of_tensors_alone() -> None:
    first, output = large_output(64), large_output(64, 3.0)
    del first  # the start of a chunk is idle
    cw.release_workspace()
    held = cw.workspace_bytes()  # what its chunk has left
    assert output.eq(3.0).all()
    del output
    assert cw.workspace_bytes() > held
    cw.release_workspace()
    assert cw.workspace_bytes() == 0


# AOTDispatcher's check compares tensors, and these have none.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("workspace_bytes", ()), ("release_workspace", ()), ("poison_workspace", (False,))],
)
def test_opcheck(name: str, arguments: tuple[bool, ...]) -> None:
    operation = getattr(torch.ops.cwkernels, name).default
    torch.library.opcheck(operation, arguments, test_utils=CHECKS)
