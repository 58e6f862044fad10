"""gather_conv as an operation of torch: rows, gradients in order, autograd, bad input."""

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.ops.backend import Backend
from cwkernels.testing import (
    Tensors,
    as_reference,
    assert_as_close,
    assert_bitwise,
    compact_rows,
    dense_random,
    evaluate,
    expect,
    refused,
)

OPERATION = "gather_conv"
GROUPS = pytest.mark.parametrize("groups", [1, 6])


def bank(sets: int, groups: int, kernel_size: int = 3) -> Tensor:
    return dense_random(sets, 6, 6 // groups, kernel_size, kernel_size, seed=1)


def gradients(
    images: Tensor, weight: Tensor, rows: list[int], cotangent: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """The gradients of images and of the bank, the latter compact."""
    images, weight = images.detach().requires_grad_(), weight.detach().requires_grad_()
    ops.gather_conv(images, weight, torch.tensor(rows), groups=groups).backward(cotangent)
    assert images.grad is not None
    assert weight.grad is not None
    return images.grad, weight.grad


@GROUPS
@pytest.mark.parametrize("shared", [True, False])
def test_an_architecture_does_not_depend_on_the_others(
    groups: int, shared: bool, device: torch.device, threads: int
) -> None:
    rows = [3, 0, 3, 2, 1]
    images = dense_random(3, 6, 7, 9) if shared else dense_random(5, 3, 6, 7, 9)
    weight, cotangent = bank(4, groups), dense_random(5, 3, 6, 7, 9, seed=2)
    output = ops.gather_conv(images, weight, torch.tensor(rows), groups=groups)
    image_gradient, _ = gradients(images, weight, rows, cotangent, groups)
    for a, row in enumerate(rows):
        own = images if shared else images[a]
        alone = ops.gather_conv(own, weight, torch.tensor(row), groups=groups)
        assert_bitwise(f"output[{a}]", output[a], alone)
        if not shared:
            alone, _ = gradients(own, weight, [row], cotangent[a, None], groups)
            assert_bitwise(f"gradient of input[{a}]", image_gradient[a], alone)


@GROUPS
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_are_summed_in_order(
    groups: int, shared: bool, device: torch.device, threads: int
) -> None:
    rows = [3, 0, 3, 0, 3]
    images = dense_random(3, 6, 7, 9) if shared else dense_random(5, 3, 6, 7, 9)
    weight, cotangent = bank(5, groups), dense_random(5, 3, 6, 7, 9, seed=2)
    singles = [
        gradients(images if shared else images[a], weight, [row], cotangent[a, None], groups)
        for a, row in enumerate(rows)
    ]
    image_gradient, weight_gradient = gradients(images, weight, rows, cotangent, groups)
    if shared:
        total = singles[0][0].clone()
        for single, _ in singles[1:]:
            total += single
        assert_bitwise("gradient of input", image_gradient, total)
    selected, values = compact_rows("gradient of weight", weight_gradient)
    assert selected == [0, 3]
    for row, value in zip(selected, values, strict=True):
        own = [compact_rows("", single)[1][0] for _, single in singles]
        ordered = [own[a] for a in range(len(rows)) if rows[a] == row]
        total = ordered[0].clone()
        for single in ordered[1:]:
            total += single
        assert_bitwise(f"gradient of weight[{row}]", value, total)


@GROUPS
def test_results_repeat_bit_for_bit(groups: int, device: torch.device, threads: int) -> None:
    images, weight = dense_random(4, 6, 33, 35), bank(3, groups)
    cotangent = dense_random(2, 4, 6, 33, 35, seed=2)
    first = gradients(images, weight, [2, 0], cotangent, groups)
    for _ in range(3):
        again = gradients(images, weight, [2, 0], cotangent, groups)
        assert_bitwise("gradient of input", again[0], first[0])
        assert_bitwise("gradient of weight", again[1].to_dense(), first[1].to_dense())


@GROUPS
def test_dense_gradient_is_zero_in_other_rows(groups: int, device: torch.device) -> None:
    images, weight = dense_random(2, 6, 5, 5), bank(4, groups).requires_grad_()
    rows = torch.tensor([3, 1, 3])
    output = ops.gather_conv(images, weight, rows, groups=groups, dense_grad=True)
    output.backward(dense_random(*output.shape, seed=2))
    dense = weight.grad
    assert dense is not None
    assert dense.layout == torch.strided
    _, compact = gradients(images, weight, [3, 1, 3], dense_random(*output.shape, seed=2), groups)
    selected, values = compact_rows("gradient of weight", compact)
    assert selected == [1, 3]
    assert_bitwise("gradient of weight", dense[selected], values)
    assert not dense[[0, 2]].any()


def test_gradients_accumulate_over_batches(device: torch.device) -> None:
    weight = bank(4, 1).requires_grad_()
    total = torch.zeros_like(weight)
    for seed, rows in enumerate([[3, 1], [1, 0]]):
        images, cotangent = (
            dense_random(2, 6, 5, 5, seed=seed),
            dense_random(2, 2, 6, 5, 5, seed=seed + 5),
        )
        ops.gather_conv(images, weight, torch.tensor(rows)).backward(cotangent)
        total += gradients(images, weight, rows, cotangent, 1)[1].to_dense()
    assert weight.grad is not None
    assert weight.grad.is_sparse
    summed = weight.grad.coalesce()
    assert summed.indices()[0].tolist() == [0, 1, 3]
    assert_bitwise("gradient of weight", summed.values(), total[[0, 1, 3]])


@pytest.mark.parametrize("frozen", ["input", "weight", "both"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    images = dense_random(2, 6, 5, 5).requires_grad_(frozen == "weight")
    weight = bank(4, 1).requires_grad_(frozen == "input")
    output = ops.gather_conv(images, weight, torch.tensor([1, 1]))
    assert output.requires_grad == (frozen != "both")
    if frozen != "both":
        output.sum().backward()
    assert (images.grad is not None) == (frozen == "weight")
    assert (weight.grad is not None) == (frozen == "input")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_recorded_in(mode: type[torch.no_grad]) -> None:
    images, weight, row = dense_random(2, 6, 5, 5), bank(4, 1).requires_grad_(), torch.tensor(2)
    with mode():
        output = ops.gather_conv(images, weight, row)
    assert not output.requires_grad
    assert_bitwise("output", output, ops.gather_conv(images, weight, row))


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_a_loss_older_than_a_change_of_the_bank_is_refused(backend: Backend) -> None:
    weight = bank(4, 1).requires_grad_()
    with ops.backend(backend):
        output = ops.gather_conv(dense_random(2, 6, 5, 5), weight, torch.tensor([1, 2]))
    with torch.no_grad():
        weight[0] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_gradient_of_a_gradient_is_refused() -> None:
    weight = bank(2, 1).requires_grad_()
    output = ops.gather_conv(dense_random(2, 6, 5, 5), weight, torch.tensor(1))
    with refused(RuntimeError, "gather_conv: backward: wanted create_graph=False, got True"):
        torch.autograd.grad(output.sum(), weight, create_graph=True)


@GROUPS
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_the_reference_is_equivalent(
    groups: int, stride: int, mean: float, device: torch.device
) -> None:
    def run(tensors: Tensors) -> Tensors:
        images, weight = tensors["images"], tensors["weight"]
        rows = torch.tensor([3, 1, 3])
        return {"output": ops.gather_conv(images, weight, rows, stride=stride, groups=groups)}

    inputs = {"images": dense_random(2, 6, 7, 9, mean=mean), "weight": bank(4, groups)}
    size = (3, 2, 6, *((side - 1) // stride + 1 for side in (7, 9)))
    cotangents = {"output": dense_random(*size, seed=2)}
    expected = expect(as_reference(run), inputs, cotangents)
    gradient = expected.stock["gradient of weight"]
    assert gradient is not None
    assert compact_rows("gradient of weight", gradient.coalesce())[0] == [1, 3]
    assert_as_close(evaluate(run, inputs, cotangents), expected, terms={"": 2 * 7 * 9})


@pytest.mark.parametrize(
    ("groups", "kernel_size", "stride", "rows", "shared"),
    [
        (1, 3, 1, [1, 0, 1], True),
        (1, 3, 2, [0, 1], False),
        (4, 5, 2, [1, 1], True),
        (4, 3, 1, [0], False),
    ],
)
def test_gradcheck(
    groups: int, kernel_size: int, stride: int, rows: list[int], shared: bool, device: torch.device
) -> None:
    images = dense_random(*([] if shared else [len(rows)]), 2, 4, 3, 4).double().requires_grad_()
    weight = (
        dense_random(2, 4, 4 // groups, kernel_size, kernel_size, seed=1).double().requires_grad_()
    )

    def run(images: Tensor, weight: Tensor) -> Tensor:
        return ops.gather_conv(
            images, weight, torch.tensor(rows), stride=stride, groups=groups, dense_grad=True
        )

    assert torch.autograd.gradcheck(run, (images, weight))


@pytest.mark.parametrize("dense_grad", [True, False])
def test_opcheck(dense_grad: bool) -> None:
    opcheck(torch.float32, torch.device("cpu"), dense_grad)


def test_opcheck_of_backward() -> None:
    opcheck_of_backward(torch.float32, torch.device("cpu"))


def test_bf16_opcheck(gpu: torch.device) -> None:
    opcheck(torch.bfloat16, gpu, dense_grad=False)
    opcheck_of_backward(torch.bfloat16, gpu)


def opcheck(dtype: torch.dtype, device: torch.device, dense_grad: bool) -> None:
    images = dense_random(1, 2, 6, 5, 7).to(device, dtype).requires_grad_()
    weight = bank(3, 1).to(device).requires_grad_()
    arguments = (images, weight, torch.tensor([2, 0, 2]), 2, 1, dense_grad)
    torch.library.opcheck(torch.ops.cwkernels.gather_conv.default, arguments)


def opcheck_of_backward(dtype: torch.dtype, device: torch.device) -> None:
    images, weight = dense_random(1, 2, 6, 5, 7).to(device, dtype), bank(3, 1).to(device)
    rows = torch.tensor([2, 0, 2])
    gradient = dense_random(3, 2, 6, 3, 4, seed=2).to(device, dtype)
    for operation, arguments in (
        (
            torch.ops.cwkernels.gather_conv_backward_input.default,
            (gradient, weight, rows, list(images.shape), 2, 1),
        ),
        (
            torch.ops.cwkernels.gather_conv_backward_weight.default,
            (gradient, images, rows, 3, 2, 1),
        ),
    ):
        torch.library.opcheck(operation, arguments)


Call = tuple[Tensor, Tensor, Tensor, int, int]


def call(
    images: Tensor | None = None,
    weight: Tensor | None = None,
    rows: Tensor | None = None,
    stride: int = 1,
    groups: int = 1,
) -> Call:
    """A good call but for what is given."""
    return (
        dense_random(2, 6, 5, 5) if images is None else images,
        bank(3, 1) if weight is None else weight,
        torch.tensor([2, 0]) if rows is None else rows,
        stride,
        groups,
    )


BAD_RANKS = {
    "rows: wanted int64 [] or [A], got [1, 2]": call(rows=torch.tensor([[0, 1]])),
    "input: wanted [N, C, H, W] or [A, N, C, H, W], got [6, 5, 5]": call(dense_random(6, 5, 5)),
    "input: wanted [N, C, H, W], got [1, 2, 6, 5, 5]": call(
        dense_random(1, 2, 6, 5, 5), rows=torch.tensor(0)
    ),
}
BAD_VALUES = {
    "rows[1]: wanted a row in [0, 3), got 3": call(rows=torch.tensor([0, 3])),
    "rows[0]: wanted a row in [0, 3), got -1": call(rows=torch.tensor([-1, 0])),
    "rows[0]: wanted a row in [0, 0), got 0": call(weight=bank(3, 1)[:0], rows=torch.tensor(0)),
    "rows: wanted int64 [A], got int32 [2]": call(rows=torch.tensor([0, 1], dtype=torch.int32)),
    "rows: wanted a contiguous tensor, got a strided one": call(rows=torch.arange(3)[::2]),
    "input: wanted 6 channels, got 5": call(dense_random(2, 5, 5, 5)),
    "input: wanted 1 or 2 (one for each row) in dimension 0, got 3": call(
        dense_random(3, 2, 6, 5, 5)
    ),
    "input: wanted at least one channel and one pixel, got [1, 2, 0, 5, 5]": call(
        torch.ones(2, 0, 5, 5), torch.ones(3, 4, 0, 3, 3)
    ),
    "input: wanted at least one channel and one pixel, got [1, 2, 6, 0, 5]": call(
        torch.ones(2, 6, 0, 5), stride=2
    ),
    "input: wanted at least one channel and one pixel, got [1, 2, 6, 5, 0]": call(
        torch.ones(2, 6, 5, 0)
    ),
    "input: wanted float32, float64 or bfloat16, got float16": call(
        dense_random(2, 6, 5, 5).half()
    ),
    "input: wanted float32, float64 or bfloat16, got int64": call(dense_random(2, 6, 5, 5).long()),
    "weight: wanted float64, got float32": call(dense_random(2, 6, 5, 5).double()),
    "weight: wanted a contiguous bank [S, K, C / groups, R, R], got [6, 6, 3, 3]": call(
        weight=bank(3, 1)[0]
    ),
    "weight: wanted a contiguous bank [S, K, C / groups, R, R], got [3, 6, 6, 3, 3]": call(
        weight=bank(3, 1).mT
    ),
    "weight: wanted a contiguous bank [S, K, C / groups, R, R], got [3, 6, 6, 3, 1]": call(
        weight=dense_random(3, 6, 6, 3, 1)
    ),
    "kernel size: wanted 1, 3, 5 or 7, got 2": call(weight=dense_random(3, 6, 6, 2, 2)),
    "kernel size: wanted 1, 3, 5 or 7, got 9": call(weight=dense_random(3, 6, 6, 9, 9)),
    "stride: wanted 1 or 2, got 3": call(stride=3),
    "stride: wanted 1 or 2, got 0": call(stride=0),
    "groups: wanted 1, or the number of input and output channels, got 2": call(
        weight=dense_random(3, 6, 3, 3, 3), groups=2
    ),
}


@pytest.mark.parametrize(("message", "arguments"), BAD_RANKS.items(), ids=BAD_RANKS)
@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_bad_ranks_are_refused(message: str, arguments: Call, backend: Backend) -> None:
    *tensors, stride, groups = arguments
    with ops.backend(backend), refused(ValueError, f"gather_conv: {message}"):
        ops.gather_conv(*tensors, stride=stride, groups=groups)


@pytest.mark.parametrize(("message", "arguments"), BAD_VALUES.items(), ids=BAD_VALUES)
def test_bad_input_is_refused(message: str, arguments: Call) -> None:
    *tensors, stride, groups = arguments
    with refused(RuntimeError, f"gather_conv: {message}"):
        ops.gather_conv(*tensors, stride=stride, groups=groups)
