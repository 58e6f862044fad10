"""update_statistics against stock batch norms that see the same images in the same order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cwkernels import ops
from cwkernels.ops.backend import Backend
from cwkernels.testing import (
    Call,
    assert_bitwise,
    assert_close_to_reference,
    assert_within,
    dense_random,
    evaluate,
    refused,
    statistics_of,
)
from cwkernels.testing.cases.update_statistics import network_calls
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated

OPERATION = "update_statistics"
CPU = torch.device("cpu")

CHANNELS, SETS = (5, 3), (4, 2)
ROWS = torch.tensor([[2, 0, 2, 2], [1, -1, 1, 0]])
SHAPES = ((2, 5, 3, 4), (3, 3, 2, 2))
COUNTS = (24, 12)
BACKEND_NAMES: tuple[Backend, ...] = ("kernels", "reference")
BACKENDS = pytest.mark.parametrize("backend", BACKEND_NAMES)


class Running:
    """The running statistics of all batch norms, of numbers that no update leaves alone."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> None:
        sizes = list(zip(SETS, CHANNELS, strict=True))
        drawn = [dense_random(*size, seed=i).to(device, dtype) for i, size in enumerate(sizes)]
        self.mean, self.var = drawn, [tensor.abs() for tensor in drawn]
        self.batches = [torch.arange(5, 5 + sets, device=device) for sets in SETS]

    def tensors(self) -> list[Tensor]:
        return [tensor.cpu() for tensor in (*self.mean, *self.var, *self.batches)]

    def update(self, statistics: list[Tensor], momentum: float | None) -> None:
        measured = [tensor.to(self.mean[0].device) for tensor in statistics]
        ops.update_statistics(
            self.mean, self.var, self.batches, measured, ROWS, COUNTS, momentum=momentum
        )


def images(norm: int, mean: float = 0.0) -> Tensor:
    """One batch for each architecture, of different means and deviations."""
    architectures = ROWS.shape[1]
    scale = torch.arange(1.0, 1 + architectures).reshape(-1, 1, 1, 1, 1)
    drawn = dense_random(architectures, *SHAPES[norm], seed=10 + norm, mean=mean)
    return drawn * scale


def stock(norm: int, mean: float, momentum: float | None, dtype: torch.dtype) -> Running:
    """What a `BatchNorm2d` for each row makes of the images of the architectures, in order."""
    running = Running(dtype)
    for row in range(SETS[norm]):
        module = nn.BatchNorm2d(CHANNELS[norm], momentum=momentum, dtype=dtype)
        assert module.running_mean is not None
        assert module.running_var is not None
        assert module.num_batches_tracked is not None
        module.running_mean.copy_(running.mean[norm][row])
        module.running_var.copy_(running.var[norm][row])
        module.num_batches_tracked.fill_(running.batches[norm][row])
        for batch, chosen in zip(images(norm, mean).to(dtype), ROWS[norm], strict=True):
            if chosen == row:
                module(batch)
        running.mean[norm][row] = module.running_mean
        running.var[norm][row] = module.running_var
        running.batches[norm][row] = module.num_batches_tracked
    return running


@BACKENDS
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_updates_as_batch_norm_does(
    backend: Backend, momentum: float | None, mean: float, device: torch.device
) -> None:
    running = Running(device=device)
    with ops.backend(backend):
        running.update([statistics_of(images(norm, mean)) for norm in range(2)], momentum)
    for norm in range(2):
        reference = stock(norm, mean, momentum, torch.float64)
        single = stock(norm, mean, momentum, torch.float32)
        assert torch.equal(running.batches[norm].cpu(), reference.batches[norm])
        for name, ours, double, float_ in (
            ("running_mean", running.mean[norm], reference.mean[norm], single.mean[norm]),
            ("running_var", running.var[norm], reference.var[norm], single.var[norm]),
        ):
            assert_close_to_reference(
                f"{name}[{norm}]", ours.cpu(), double, float_, terms=COUNTS[norm]
            )


@BACKENDS
@pytest.mark.parametrize("momentum", [0.1, None])
def test_rows_that_are_not_named_are_untouched(
    backend: Backend, momentum: float | None, device: torch.device
) -> None:
    running, before = Running(device=device), Running(device=device)
    with ops.backend(backend):
        running.update([statistics_of(images(norm)) for norm in range(2)], momentum)
    for norm in range(2):
        for row in range(SETS[norm]):
            named = row in ROWS[norm]
            for old, new in (
                (before.mean[norm][row], running.mean[norm][row]),
                (before.var[norm][row], running.var[norm][row]),
                (before.batches[norm][row], running.batches[norm][row]),
            ):
                assert bool((old != new).any()) == bool((old != new).all()) == named


def test_a_row_is_updated_in_order(device: torch.device) -> None:
    together, one_by_one = Running(device=device), Running(device=device)
    statistics = [statistics_of(images(norm)).to(device) for norm in range(2)]
    together.update(statistics, 0.3)
    for a in range(ROWS.shape[1]):
        ops.update_statistics(
            one_by_one.mean,
            one_by_one.var,
            one_by_one.batches,
            [measured[a : a + 1] for measured in statistics],
            ROWS[:, a : a + 1],
            COUNTS,
            momentum=0.3,
        )
    for name, result, expected in zip(
        "mmvvbb", together.tensors(), one_by_one.tensors(), strict=True
    ):
        assert_bitwise(name, result, expected)


def test_no_momentum_from_zero_is_the_exact_average() -> None:
    statistics = statistics_of(images(0)).double()
    mean, var = torch.full((1, 5), 7.0).double(), torch.full((1, 5), 7.0).double()
    batches = torch.tensor([0])
    rows = torch.zeros((1, 4), dtype=torch.int64)
    ops.update_statistics([mean], [var], [batches], [statistics], rows, [24], momentum=None)
    torch.testing.assert_close(mean[0], statistics[:, 0].mean(0))
    torch.testing.assert_close(var[0], statistics[:, 1].mean(0) * 24 / 23)
    assert batches.tolist() == [4]


def gapped(tensor: Tensor) -> Tensor:
    """The same numbers, every second one of a larger tensor."""
    return torch.stack([tensor, torch.full_like(tensor, 99)], -1)[..., 0]


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_layout(backend: Backend, dtype: torch.dtype, device: torch.device) -> None:
    dense, strided = Running(dtype, device), Running(dtype, device)
    strided.mean = [gapped(tensor) for tensor in strided.mean]
    strided.var = [gapped(tensor) for tensor in strided.var]
    strided.batches = [gapped(tensor) for tensor in strided.batches]
    # One measurement for all architectures, as a batch norm leaves it that they share.
    measured = [statistics_of(images(norm)[:1]).to(dtype).expand(4, -1, -1) for norm in range(2)]
    with ops.backend(backend):
        dense.update([tensor.contiguous() for tensor in measured], 0.3)
        strided.update([measured[0], gapped(measured[1])], 0.3)
    for one, other in zip(dense.tensors(), strided.tensors(), strict=True):
        assert torch.equal(one, other)


@BACKENDS
def test_a_loss_older_than_an_update_is_refused(backend: Backend) -> None:
    running = Running()
    weight = torch.ones(SETS[0], CHANNELS[0], requires_grad=True)
    loss = (weight * running.mean[0]).sum()
    with ops.backend(backend):
        running.update([statistics_of(images(norm)) for norm in range(2)], 0.3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_the_kernel_refuses_by_itself_changes_nothing() -> None:
    """A compiled graph calls it without the checks of rows before it."""
    running, before = Running(), Running()
    statistics = [torch.ones(4, 2, channels) for channels in CHANNELS]
    rows = torch.tensor([[2, 0, 2, 2], [1, -1, 1, 2]])
    arguments = (running.mean, running.var, running.batches, statistics, rows, [24, 12], 0.1)
    with refused(RuntimeError, "update_statistics: rows[1]: wanted rows in [-1, 2), got 2"):
        torch.ops.cwkernels.update_statistics(*arguments)
    for old, new in zip(before.tensors(), running.tensors(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize(("norms", "architectures"), [(60, 3), (2, 700)])
def test_more_than_fits_a_launch(norms: int, architectures: int, device: torch.device) -> None:
    sets, channels = 5, 3
    statistics = dense_random(norms, architectures, 2, channels, seed=1).double().to(device)
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(-1, sets, (norms, architectures), generator=generator)
    results = []
    for backend in BACKEND_NAMES:
        mean = dense_random(norms, sets, channels).double().to(device)
        var, batches = mean.abs(), torch.zeros(norms, sets, dtype=torch.int64, device=device)
        with ops.backend(backend):
            ops.update_statistics([*mean], [*var], [*batches], [*statistics], rows, [24] * norms)
        results.append((mean, var, batches.double()))
    for ours, theirs in zip(*results, strict=True):
        assert_within("float64 network", "running", ours, theirs)


def test_nothing_to_update() -> None:
    running, before = Running(), Running()
    ops.update_statistics([], [], [], [], torch.zeros((0, 2), dtype=torch.int64), [])
    nothing = [torch.zeros(0, 2, channels) for channels in CHANNELS]
    no_rows = torch.zeros((2, 0), dtype=torch.int64)
    ops.update_statistics(running.mean, running.var, running.batches, nothing, no_rows, COUNTS)
    for old, new in zip(before.tensors(), running.tensors(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.skipif(why_not_emulated(OPERATION) is not None, reason=f"{OPERATION} is not emulated")
@pytest.mark.parametrize("call", network_calls(2), ids=str)
def test_a_network_is_one_emulated_launch(call: Call) -> None:
    with emulated():
        evaluate(call.run, call.inputs(), {})
        assert emulated_launches() == 1


def test_opcheck() -> None:
    running = Running()
    statistics = [statistics_of(images(norm)) for norm in range(2)]
    arguments = (running.mean, running.var, running.batches, statistics, ROWS, list(COUNTS), 0.1)
    torch.library.opcheck(torch.ops.cwkernels.update_statistics.default, arguments)


Arguments = dict[str, list[Tensor] | Tensor | list[int]]


def replace(name: str, *values: Tensor) -> Callable[[Arguments], None]:
    """Puts values in place of the last entries of a list."""

    def change(arguments: Arguments) -> None:
        entries = arguments[name]
        assert isinstance(entries, list)
        arguments[name] = [*entries[: -len(values)], *values]

    return change


def put(name: str, value: Tensor | list[int] | list[Tensor]) -> Callable[[Arguments], None]:
    def change(arguments: Arguments) -> None:
        arguments[name] = value

    return change


BAD = {
    "running_var: wanted 2 entries, as many as running_mean, got 0": put("running_var", []),
    "num_batches_tracked: wanted 2 entries, as many as running_mean, got 0": put(
        "num_batches_tracked", []
    ),
    "statistics: wanted 2 entries, as many as running_mean, got 0": put("statistics", []),
    "counts: wanted 2 entries, as many as running_mean, got 1": put("counts", [24]),
    "counts[1]: wanted at least 1, got 0": put("counts", [24, 0]),
    "rows: wanted int64 [2, A], got torch.int64 [1, 4]": put("rows", ROWS[:1]),
    "rows: wanted int64 [2, A], got torch.int64 [2]": put("rows", ROWS[:, 0]),
    "rows: wanted int64 [2, A], got torch.float32 [2, 4]": put("rows", ROWS.float()),
    "rows[1]: wanted rows in [-1, 2), got [1, -1, 1, 2]": put(
        "rows", torch.tensor([[2, 0, 2, 2], [1, -1, 1, 2]])
    ),
    "rows[0]: wanted rows in [-1, 4), got [-2, 0, 2, 2]": put(
        "rows", torch.tensor([[-2, 0, 2, 2], [1, -1, 1, 0]])
    ),
    "running_mean[1]: wanted [S, C], got [3]": replace("running_mean", torch.ones(3)),
    "running_var[1]: wanted torch.float32 [2, 3], got torch.float32 [2, 4]": replace(
        "running_var", torch.ones(2, 4)
    ),
    "running_var[1]: wanted torch.float32 [2, 3], got torch.float32 [1, 3]": replace(
        "running_var", torch.ones(1, 3)
    ),
    "running_var[1]: wanted torch.float32 [2, 3], got torch.float64 [2, 3]": replace(
        "running_var", torch.ones(2, 3).double()
    ),
    "num_batches_tracked[1]: wanted torch.int64 [2], got torch.int64 [1]": replace(
        "num_batches_tracked", torch.tensor([1])
    ),
    "num_batches_tracked[1]: wanted torch.int64 [2], got torch.float32 [2]": replace(
        "num_batches_tracked", torch.ones(2)
    ),
    "statistics[1]: wanted torch.float32 [4, 2, 3], got torch.float32 [4, 2, 4]": replace(
        "statistics", torch.ones(4, 2, 4)
    ),
    "statistics[1]: wanted torch.float32 [4, 2, 3], got torch.float32 [3, 2, 3]": replace(
        "statistics", torch.ones(3, 2, 3)
    ),
    "statistics[1]: wanted torch.float32 [4, 2, 3], got torch.float64 [4, 2, 3]": replace(
        "statistics", torch.ones(4, 2, 3).double()
    ),
}


@BACKENDS
@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD)
def test_bad_input_is_refused_and_changes_nothing(
    message: str, change: Callable[[Arguments], None], backend: Backend
) -> None:
    running, before = Running(), Running()
    arguments: Arguments = {
        "running_mean": running.mean,
        "running_var": running.var,
        "num_batches_tracked": running.batches,
        "statistics": [torch.ones(4, 2, channels) for channels in CHANNELS],
        "rows": ROWS,
        "counts": list(COUNTS),
    }
    change(arguments)
    with ops.backend(backend), refused(ValueError, f"update_statistics: {message}"):
        ops.update_statistics(**arguments)  # type: ignore[arg-type]
    for old, new in zip(before.tensors(), running.tensors(), strict=True):
        assert torch.equal(old, new)
