"""The backend: kernels or references, for a while or for the process, remembered for backward."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import cwkernels as cw
from cwkernels import ops
from cwkernels.ops.backend import Backend
from cwkernels.testing import Call, dense_random, network_calls, refused


class Recorder(TorchDispatchMode):
    """Names of the operations that run inside, in this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))

    @property
    def ours(self) -> bool:
        return any(name.startswith("cwkernels::") for name in self.names)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = ops.current_backend()
    yield
    ops.set_backend(before)


def call() -> Tensor:
    images = dense_random(2, 3, 4, 4).requires_grad_()
    weight = dense_random(2, 4, 3, 3, 3, seed=1).requires_grad_()
    return ops.gather_conv(images, weight, torch.tensor(1))


def runs_kernels(function: Callable[[], object]) -> bool:
    recorder = Recorder()
    with recorder:
        function()
    return recorder.ours


def test_kernels_are_the_default() -> None:
    assert ops.current_backend() == "kernels"
    assert runs_kernels(call)


def test_a_block_uses_its_backend_and_ends() -> None:
    with cw.backend("reference"):
        assert ops.current_backend() == "reference"
        assert not runs_kernels(call)
    assert ops.current_backend() == "kernels"
    assert runs_kernels(call)


def test_blocks_nest_and_end_by_errors_too() -> None:
    with cw.backend("reference"):
        with cw.backend("kernels"):
            assert ops.current_backend() == "kernels"
            assert runs_kernels(call)
        assert ops.current_backend() == "reference"
        with pytest.raises(ZeroDivisionError), cw.backend("kernels"):
            _ = 1 // 0
        assert ops.current_backend() == "reference"
    assert ops.current_backend() == "kernels"


def test_the_process_has_a_default_that_blocks_override() -> None:
    cw.set_backend("reference")
    assert ops.current_backend() == "reference"
    assert not runs_kernels(call)
    with cw.backend("kernels"):
        assert runs_kernels(call)
    assert ops.current_backend() == "reference"
    cw.set_backend("kernels")
    assert ops.current_backend() == "kernels"


def in_a_thread(function: Callable[[], object]) -> None:
    errors: list[BaseException] = []

    def target() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_a_block_is_of_its_thread_and_the_default_of_all() -> None:
    seen: list[Backend] = []
    with cw.backend("reference"):
        in_a_thread(lambda: seen.append(ops.current_backend()))
    cw.set_backend("reference")
    in_a_thread(lambda: seen.append(ops.current_backend()))
    assert seen == ["kernels", "reference"]


@pytest.mark.parametrize("forward", ["kernels", "reference"])
@pytest.mark.parametrize("in_another_thread", [False, True])
def test_backward_keeps_to_the_backend_of_forward(
    forward: Backend, in_another_thread: bool
) -> None:
    other: Backend = "reference" if forward == "kernels" else "kernels"
    with cw.backend(forward):
        output = call()
    ran: list[bool] = []

    def backward() -> None:
        with cw.backend(other):
            ran.append(runs_kernels(lambda: output.sum().backward()))

    if in_another_thread:
        in_a_thread(backward)
    else:
        backward()
    assert ran == [forward == "kernels"]


@pytest.mark.parametrize("name", ["cuda", "", "Reference", None])
def test_unknown_names_are_refused(name: str) -> None:
    wanted = f"name: wanted 'kernels' or 'reference', got {name!r}"
    with refused(ValueError, f"backend: {wanted}"), cw.backend(name):  # type: ignore[arg-type]
        pass
    with refused(ValueError, f"set_backend: {wanted}"):
        cw.set_backend(name)  # type: ignore[arg-type]
    assert ops.current_backend() == "kernels"


ONE_OF_EACH = {call.operation: call for call in network_calls()}


@pytest.mark.parametrize("call", ONE_OF_EACH.values(), ids=str)
def test_every_operation_has_a_reference(call: Call) -> None:
    inputs = call.inputs()
    for backend, kernels in ((nullcontext(), True), (cw.backend("reference"), False)):
        with backend:
            assert runs_kernels(lambda: call.run(inputs)) == kernels


@pytest.mark.parametrize("row", [-1, 2])
def test_the_references_refuse_the_rows_that_the_kernels_refuse(row: int) -> None:
    images, bank, rows = (
        dense_random(2, 3, 4, 4),
        dense_random(2, 4, 3, 3, 3),
        torch.tensor([0, row]),
    )
    message = f"rows[1]: wanted a row in [0, 2), got {row}"
    for backend in ("kernels", "reference"):
        with cw.backend(backend):
            with refused(RuntimeError, f"gather_conv: {message}"):
                ops.gather_conv(images, bank, rows)
            with refused(RuntimeError, f"copy_rows: {message}"):
                ops.copy_rows(bank, rows)
