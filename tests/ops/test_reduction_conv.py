"""reduction_conv against stock ReLU, average pool and convolutions, and against conv_norm."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import get_args

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.ops.precision import Precision
from cwkernels.testing import (
    Expected,
    Tensors,
    as_reference,
    assert_as_close,
    assert_bitwise,
    cast,
    dense_random,
    evaluate,
    expect,
    in_autocast,
    on_device,
    refused,
    small_integers,
    stored_as_bf16,
)
from cwkernels.testing.cases.reduction_conv import (
    Case,
    convolutions,
    cotangents_of,
    inputs_of,
    run,
    stock,
    terms_of,
)
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated

OPERATION = "reduction_conv"
pytestmark = pytest.mark.usefixtures("poisoned")

CASES = (
    Case("any", (3, 5, 6, 8), 7),
    Case("tiles_16", (3, 16, 16, 16), 16),
    Case("tiles_32", (3, 16, 12, 14), 32),
    Case("tiles_64", (9, 32, 16, 16), 64),
    Case("two_architectures", (2, 3, 16, 6, 10), 32),
    Case("two_architectures_of_any", (2, 2, 4, 6, 4), 3),
)


# Of one output each, whose deviation a large mean would leave to rounding.
ONE_OUTPUT = Case("one_output", (4, 16, 2, 2), 32)


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@cache
def expected(case: Case, mean: float) -> Expected:
    return expect(stock, inputs_of(case, mean), cotangents_of(case))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_is_as_close_as_stock_torch(case: Case, mean: float, device: torch.device) -> None:
    for precision in get_args(Precision):
        with ops.float32_conv_precision(precision):
            results = evaluate(on_device(run, device), inputs_of(case, mean), cotangents_of(case))
        assert_as_close(results, expected(case, mean), terms=terms_of(case), precision=precision)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_is_stock_torch(case: Case) -> None:
    results = evaluate(as_reference(run), inputs_of(case), cotangents_of(case))
    assert_as_close(results, expected(case, 0.0), terms=terms_of(case))


@pytest.mark.parametrize("case", [*CASES, ONE_OUTPUT], ids=str)
def test_small_integers_are_exact(case: Case, device: torch.device) -> None:
    inputs = {name: small_integers(*t.shape, seed=7) for name, t in inputs_of(case).items()}
    cotangents = {n: small_integers(*t.shape, seed=9) for n, t in cotangents_of(case).items()}
    wanted = evaluate(convolutions, cast(inputs, torch.float64), cotangents)
    with ops.float32_conv_precision("highest"):
        results = evaluate(on_device(run, device), inputs, cotangents)
    for name, exact in wanted.items():
        result = results[name]
        assert result is not None
        assert exact is not None
        assert_bitwise(name, result, exact.to(result.dtype))


@pytest.mark.parametrize("name", ["any", "tiles_16", "tiles_32", "tiles_64", "two_architectures"])
def test_bf16_is_as_close_as_stock_autocast(name: str, gpu: torch.device) -> None:
    case = named(name)
    inputs = stored_as_bf16(inputs_of(case), "input")
    cotangents = stored_as_bf16(cotangents_of(case), "output", "shortcut output")
    results = evaluate(on_device(run, gpu), inputs, cotangents)
    wanted = expect(in_autocast(stock), inputs, cotangents)
    assert_as_close(results, wanted, terms=terms_of(case), precision="bf16")


def test_bf16_needs_a_gpu() -> None:
    line = (
        "reduction_conv: input: wanted float32 or float64 on the CPU, "
        "got bfloat16, whose kernels need a GPU"
    )
    with refused(RuntimeError, line):
        run(stored_as_bf16(inputs_of(CASES[0]), "input"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_two_calls_of_conv_norm(case: Case, device: torch.device) -> None:
    """Bit for bit, but for the gradient of the input, which is their sum."""

    def apart(tensors: Tensors) -> Tensors:
        output, measured = ops.conv_norm(tensors["input"], tensors["weight"], relu=True, stride=2)
        shortcut, _ = ops.conv_norm(tensors["input"], tensors["shortcut"], pool=True)
        mean, variance = measured.unbind(-2)
        return {"output": output, "mean": mean, "variance": variance, "shortcut output": shortcut}

    both = [
        evaluate(on_device(own, device), inputs_of(case), cotangents_of(case))
        for own in (run, apart)
    ]
    for name, wanted in both[1].items():
        result = both[0][name]
        if name == "gradient of input":
            continue
        assert result is not None
        assert wanted is not None
        assert_bitwise(name, result, wanted)


ARCHITECTURES = [case for case in CASES if len(case.shape) == 5]


@pytest.mark.parametrize("case", ARCHITECTURES, ids=str)
def test_an_architecture_does_not_depend_on_the_others(case: Case, device: torch.device) -> None:
    inputs, cotangents = inputs_of(case), cotangents_of(case)
    together = evaluate(on_device(run, device), inputs, cotangents)
    for a in range(case.shape[0]):
        own = evaluate(
            on_device(run, device),
            {**inputs, "input": inputs["input"][a]},
            {name: tensor[a] for name, tensor in cotangents.items()},
        )
        for name in ("output", "mean", "variance", "shortcut output", "gradient of input"):
            all_of, alone = together[name], own[name]
            assert all_of is not None
            assert alone is not None
            assert_bitwise(f"{name}[{a}]", all_of[a], alone)


@pytest.mark.parametrize("name", ["any", "tiles_32", "two_architectures"])
def test_any_layout_and_expanded_gradients(name: str, device: torch.device) -> None:
    case = named(name)
    inputs = {key: tensor.contiguous() for key, tensor in inputs_of(case).items()}
    per_channel = dense_random(case.out_channels, 1, 1, seed=6)
    cotangents = {n: per_channel.expand(t.shape) for n, t in cotangents_of(case).items()}
    wanted = expect(stock, inputs_of(case), cotangents)
    with ops.float32_conv_precision("highest"):
        results = evaluate(on_device(run, device), inputs, cotangents)
    assert_as_close(results, wanted, terms=terms_of(case))


@pytest.mark.parametrize("kept", ["output", "shortcut output"])
def test_a_gradient_of_one_output(kept: str, device: torch.device) -> None:
    case = named("tiles_32")
    cotangents = {kept: cotangents_of(case)[kept]}

    def one(tensors: Tensors) -> Tensors:
        return {kept: run(tensors)[kept]}

    other = "shortcut" if kept == "output" else "weight"
    results = evaluate(on_device(one, device), inputs_of(case), cotangents)
    gradient = results[f"gradient of {other}"]
    assert gradient is not None
    assert torch.equal(gradient, torch.zeros_like(gradient))
    both = cotangents | {
        n: torch.zeros_like(t) for n, t in cotangents_of(case).items() if n != kept
    }
    for name, wanted in evaluate(on_device(run, device), inputs_of(case), both).items():
        if name.startswith("gradient"):
            result = results[name]
            assert result is not None
            assert wanted is not None
            assert torch.equal(result, wanted), name


@pytest.mark.parametrize("name", ["any", "tiles_32"])
def test_gradients_of_the_weights_alone(name: str, device: torch.device) -> None:
    """The input is data: its gradient is neither wanted nor computed."""
    case = named(name)
    inputs, cotangents = inputs_of(case), cotangents_of(case)
    whole = evaluate(on_device(run, device), inputs, cotangents)
    leaves = {n: t.to(device).requires_grad_(n != "input") for n, t in inputs.items()}
    outputs = run(leaves)
    torch.autograd.backward(
        [outputs[n] for n in cotangents], [t.to(device) for t in cotangents.values()]
    )
    assert leaves["input"].grad is None
    for name in ("weight", "shortcut"):
        gradient, wanted = leaves[name].grad, whole[f"gradient of {name}"]
        assert gradient is not None
        assert wanted is not None
        assert_bitwise(name, gradient.cpu(), wanted.cpu())


def test_one_launch_forward_and_two_backward() -> None:
    """The weights; the input with the sums of the weights' partial results."""
    if (reason := why_not_emulated(OPERATION)) is not None:
        pytest.skip(reason)
    case = named("two_architectures")
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs_of(case).items()}
    with emulated():
        before = emulated_launches()
        outputs = run(leaves)
        assert emulated_launches() - before == 1
        cotangents = cotangents_of(case)
        torch.autograd.backward([outputs[n] for n in cotangents], list(cotangents.values()))
        assert emulated_launches() - before == 3


@pytest.mark.parametrize("shape", [(0, 5, 6, 4), (2, 0, 16, 6, 4)], ids=str)
def test_no_images(shape: tuple[int, ...], device: torch.device) -> None:
    case = Case("none", shape, 16)
    results = evaluate(on_device(run, device), inputs_of(case), cotangents_of(case))
    for name in ("gradient of weight", "gradient of shortcut"):
        gradient = results[name]
        assert gradient is not None
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_gradcheck(device: torch.device) -> None:
    inputs = cast(inputs_of(Case("small", (2, 3, 4, 2), 3)), torch.float64)

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        results = on_device(run, device)(dict(zip(inputs, tensors, strict=True)))
        return results["output"], results["shortcut output"]

    leaves = tuple(tensor.requires_grad_() for tensor in inputs.values())
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", ["any", "two_architectures"])
def test_opcheck(name: str) -> None:
    inputs, cotangents = inputs_of(named(name)), cotangents_of(named(name))
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    torch.library.opcheck(torch.ops.cwkernels.reduction_conv.default, (*leaves, True))
    tensors = [*cotangents.values(), *(leaf.detach() for leaf in leaves)]
    operation = torch.ops.cwkernels.reduction_conv_backward.default
    for need_input in (True, False):
        torch.library.opcheck(operation, (*tensors, True, need_input))


ONES = {name: torch.ones_like(t) for name, t in inputs_of(Case("ones", (2, 5, 6, 4), 6)).items()}
BAD: dict[str, Callable[[], object]] = {
    "input: wanted [N, C, H, W] or [A, N, C, H, W], got [5, 6, 4]": lambda: run(
        ONES | {"input": torch.ones(5, 6, 4)}
    ),
    "input: wanted an even height and width, got [2, 5, 6, 3]": lambda: run(
        ONES | {"input": torch.ones(2, 5, 6, 3)}
    ),
    "weight: wanted [K, 5, 3, 3], got [6, 5, 1, 1]": lambda: run(
        ONES | {"weight": torch.ones(6, 5, 1, 1)}
    ),
    "weight: wanted [K, 5, 3, 3], got [6, 5]": lambda: run(ONES | {"weight": torch.ones(6, 5)}),
    "shortcut: wanted [6, 5, 1, 1], got [7, 5, 1, 1]": lambda: run(
        ONES | {"shortcut": torch.ones(7, 5, 1, 1)}
    ),
    "shortcut: wanted torch.float32, got torch.float64": lambda: run(
        ONES | {"shortcut": torch.ones(6, 5, 1, 1, dtype=torch.float64)}
    ),
}


@pytest.mark.parametrize("line", BAD)
def test_refuses(line: str) -> None:
    with refused(ValueError, f"reduction_conv: {line}"):
        BAD[line]()


def test_the_operation_checks_what_memory_safety_asks() -> None:
    """Below the public function, as a graph may call it."""
    operation = torch.ops.cwkernels.reduction_conv
    case = replace(CASES[0], shape=(2, 5, 6, 4))
    good = list(inputs_of(case).values())
    for i, wrong, line in (
        (0, torch.ones(2, 5, 6, 3), "input: wanted an even height and width, got [2, 5, 6, 3]"),
        (1, torch.ones(7, 5, 1, 1), "weight: wanted [K, 5, 3, 3], got [7, 5, 1, 1]"),
        (2, torch.ones(3, 5, 1, 1), "shortcut: wanted [K, 5, 1, 1], got [3, 5, 1, 1]"),
    ):
        arguments = [*good[:i], wrong, *good[i + 1 :]]
        with refused(RuntimeError, f"reduction_conv: {line}"):
            operation(*arguments, True)
