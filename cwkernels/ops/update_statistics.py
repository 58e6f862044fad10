"""update_statistics: batch statistics into the running rows that were selected."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cwkernels.ops._library import register_fake
from cwkernels.ops.backend import current_backend


def update_statistics(
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    num_batches_tracked: Sequence[Tensor],
    statistics: Sequence[Tensor],
    rows: Tensor,
    counts: Sequence[int],
    *,
    momentum: float | None = 0.1,
) -> None:
    """Writes batch statistics into running rows; with `sgd` what changes its arguments.

    For each batch norm l and architecture a with rows[l, a] >= 0, in order of a, equivalent to what
    `torch.nn.BatchNorm2d` does in training::

        factor = 1 / (num_batches_tracked[l][row] + 1) if momentum is None else momentum
        running_mean[l][row] += factor * (mean - running_mean[l][row])
        running_var[l][row] += factor * (variance * n / (n - 1) - running_var[l][row])
        num_batches_tracked[l][row] += 1

    Rows that are not named are not touched.

    Args:
        running_mean, running_var: for each of L batch norms [S, C], written.
        num_batches_tracked: int64 [S] each, written.
        statistics: [A, 2, C] each, mean and biased variance.
        rows: int64 [L, A] on the CPU; -1 for an architecture that did not run this batch norm. Or
            int32 on the device of what is written, for its kernels: it is not read on the host, and
            rows that do not exist count as -1.
        counts: n, the values a channel that each batch norm's statistics were taken over.
        momentum: weight of the new batch; None for the exact average of all batches.

    Raises:
        ValueError: if lengths, shapes or dtypes do not fit together, or a row or a count is out of
            range. Nothing is written then.
    """
    written = (list(running_mean), list(running_var), list(num_batches_tracked))
    read = (list(statistics), rows, list(counts))
    if current_backend() == "reference":
        _check(*written, *read)
        reference(*written, *read, momentum)
    elif torch.compiler.is_compiling():
        _check(*written, *read)
        torch.ops.cwkernels.update_statistics.default(*written, *read, momentum)
    else:
        _call(written, read, momentum)


_Written = tuple[list[Tensor], list[Tensor], list[Tensor]]
_Read = tuple[list[Tensor], Tensor, list[int]]


def _call(written: _Written, read: _Read, momentum: float | None) -> None:
    """The kernel, which checks all of it itself, in less time; what it refuses is said here."""
    try:
        torch.ops.cwkernels.update_statistics.default(*written, *read, momentum)
    except RuntimeError:
        _check(*written, *read)
        _checked_rows(read[1], written[0])
        raise
    # A graph that saved them for backward must not run.
    for tensors in written:
        torch.autograd.graph.increment_version(tensors)


def _fail(argument: str, wanted: str, got: object) -> ValueError:
    return ValueError(f"update_statistics: {argument}: wanted {wanted}, got {got}")


def _check(
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    num_batches_tracked: Sequence[Tensor],
    statistics: Sequence[Tensor],
    rows: Tensor,
    counts: Sequence[int],
) -> None:
    length = len(running_mean)
    for name, values in (
        ("running_var", running_var),
        ("num_batches_tracked", num_batches_tracked),
        ("statistics", statistics),
        ("counts", counts),
    ):
        if len(values) != length:
            raise _fail(name, f"{length} entries, as many as running_mean", len(values))
    if rows.dtype not in (torch.int64, torch.int32) or rows.dim() != 2 or rows.shape[0] != length:
        raise _fail("rows", f"int64 [{length}, A]", f"{rows.dtype} {list(rows.shape)}")
    for i, mean in enumerate(running_mean):
        if mean.dim() != 2:
            raise _fail(f"running_mean[{i}]", "[S, C]", list(mean.shape))
        for name, tensor, dtype, shape in (
            ("running_var", running_var[i], mean.dtype, mean.shape),
            ("num_batches_tracked", num_batches_tracked[i], torch.int64, mean.shape[:1]),
            ("statistics", statistics[i], mean.dtype, (rows.shape[1], 2, mean.shape[1])),
        ):
            if tensor.dtype != dtype or tensor.shape != shape:
                got = f"{tensor.dtype} {list(tensor.shape)}"
                raise _fail(f"{name}[{i}]", f"{dtype} {list(shape)}", got)
        if counts[i] < 1:
            raise _fail(f"counts[{i}]", "at least 1", counts[i])


def _checked_rows(rows: Tensor, running_mean: Sequence[Tensor]) -> list[list[int]]:
    """The rows as integers, checked where they are read: a graph cannot read them."""
    values: list[list[int]] = rows.tolist()
    if rows.dtype == torch.int32:  # as the kernels read them
        return [
            [row if row < mean.shape[0] else -1 for row in row_of]
            for row_of, mean in zip(values, running_mean, strict=True)
        ]
    for i, (row_of, mean) in enumerate(zip(values, running_mean, strict=True)):
        if row_of and not -1 <= min(row_of) <= max(row_of) < mean.shape[0]:
            raise _fail(f"rows[{i}]", f"rows in [-1, {mean.shape[0]})", row_of)
    return values


def reference(
    running_mean: list[Tensor],
    running_var: list[Tensor],
    num_batches_tracked: list[Tensor],
    statistics: list[Tensor],
    rows: Tensor,
    counts: list[int],
    momentum: float | None,
) -> None:
    """The same in plain torch."""
    for i, row_of in enumerate(_checked_rows(rows, running_mean)):
        unbias = counts[i] / max(counts[i] - 1, 1)
        for measured, row in zip(statistics[i], row_of, strict=True):
            if row < 0:
                continue
            num_batches_tracked[i][row] += 1
            factor = momentum
            if factor is None:
                factor = 1 / int(num_batches_tracked[i][row])
            running_mean[i][row].lerp_(measured[0], factor)
            running_var[i][row].lerp_(measured[1] * unbias, factor)


@register_fake("update_statistics")
def _(
    running_mean: list[Tensor],
    running_var: list[Tensor],
    num_batches_tracked: list[Tensor],
    statistics: list[Tensor],
    rows: Tensor,
    counts: list[int],
    momentum: float | None,
) -> None:
    return None
