"""conv_norm against stock batch norm, ReLU, average pool and convolution."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.ops.backend import Backend
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
    statistics_of,
    stored_as_bf16,
)
from cwkernels.testing.cases.conv_norm import (
    Case,
    cotangents_of,
    inputs_of,
    run,
    stock,
    terms_of,
)
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated

OPERATION = "conv_norm"
pytestmark = pytest.mark.usefixtures("poisoned")


CASES = (
    Case("plain", norm="none", relu=False),
    Case("stem", (3, 3, 32, 32), 16, norm="none", relu=False),
    Case("reduction_a", (3, 16, 16, 16), 32, norm="none", stride=2),
    Case("reduction_b", (3, 32, 8, 8), 32),
    Case("cut_tiles", (2, 9, 16, 6, 7), 32),
    Case("shortcut", (3, 16, 16, 16), 32, 1, norm="none", relu=False, pool=True),
    Case("head", (3, 32, 4, 4), 64, 1, norm="plain"),
    Case("narrow", (3, 7, 9, 6), 48),
    Case("narrow_1x1_stride_2", (3, 4, 9, 6), 16, 1, stride=2, pool=True),
    Case("tiles_of_odd_pool", (2, 2, 16, 9, 11), 32, pool=True),
    Case("tiles_of_odd_average", (2, 2, 16, 9, 11), 32, norm="none", relu=False, pool=True),
    Case("tiles_at_stride_2", (2, 32, 9, 8), 64, norm="plain", stride=2),
    Case("tiles_of_two_architectures", (2, 3, 48, 5, 6), 16, training=False),
    Case("odd_pool", pool=True, stride=2),
    Case("5x5", kernel_size=5, relu=False, norm="plain", stride=2),
    Case("7x7_one_channel", (2, 1, 5, 8), 1, 7),
    Case("two_architectures", (2, 3, 5, 7, 9)),
    Case("five_architectures", (5, 2, 5, 4, 3), kernel_size=1, norm="plain", pool=True),
    Case("two_architectures_not_normalised", (2, 3, 5, 7, 9), norm="none"),
    Case("evaluation", training=False),
    Case("two_architectures_in_evaluation", (2, 3, 5, 7, 9), norm="plain", training=False),
)


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@cache
def expected(case: Case, mean: float) -> Expected:
    return expect(stock(case), inputs_of(case, mean), cotangents_of(case))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_is_as_close_as_stock_torch(case: Case, mean: float, device: torch.device) -> None:
    for precision in get_args(Precision):
        with ops.float32_conv_precision(precision):
            results = evaluate(
                on_device(run(case), device), inputs_of(case, mean), cotangents_of(case)
            )
        assert_as_close(results, expected(case, mean), terms=terms_of(case), precision=precision)


def test_high_precision_runs_by_winograd(device: torch.device) -> None:
    case = named("cut_tiles")
    results = []
    for precision in get_args(Precision):
        with ops.float32_conv_precision(precision):
            results.append(
                evaluate(on_device(run(case), device), inputs_of(case), cotangents_of(case))
            )
    for name, high in results[0].items():
        highest = results[1][name]
        assert high is not None
        assert highest is not None
        if name != "gradient of shift":
            assert not torch.equal(high, highest), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_is_stock_torch(case: Case) -> None:
    results = evaluate(as_reference(run(case)), inputs_of(case), cotangents_of(case))
    assert_as_close(results, expected(case, 0.0), terms=terms_of(case))


BF16_CASES = (
    "stem",
    "reduction_a",
    "cut_tiles",
    "shortcut",
    "tiles_of_odd_average",
    "tiles_of_odd_pool",
    "tiles_of_two_architectures",
    "odd_pool",
    "5x5",
    "two_architectures",
)


@pytest.mark.parametrize("name", BF16_CASES)
def test_bf16_is_as_close_as_stock_autocast(name: str, gpu: torch.device) -> None:
    case = named(name)
    inputs = stored_as_bf16(inputs_of(case), "input")
    cotangents = stored_as_bf16(cotangents_of(case), "output")
    results = evaluate(on_device(run(case), gpu), inputs, cotangents)
    wanted = expect(in_autocast(stock(case)), inputs, cotangents)
    assert_as_close(results, wanted, terms=terms_of(case), precision="bf16")


def test_bf16_needs_a_gpu() -> None:
    line = (
        "conv_norm: input: wanted float32 or float64 on the CPU, "
        "got bfloat16, whose kernels need a GPU"
    )
    with refused(RuntimeError, line):
        run(CASES[0])(stored_as_bf16(inputs_of(CASES[0]), "input"))
    with refused(RuntimeError, line), torch.autocast("cpu", torch.bfloat16):
        run(CASES[0])(inputs_of(CASES[0]))


def test_autocast_rounds_the_input_alone(gpu: torch.device) -> None:
    case = named("reduction_a")
    inputs, cotangents = inputs_of(case), cotangents_of(case)
    with torch.autocast(gpu.type, torch.bfloat16):
        results = evaluate(on_device(run(case), gpu), inputs, cotangents)
    stored = stored_as_bf16(inputs, "input")
    for key, wanted in evaluate(on_device(run(case), gpu), stored, cotangents).items():
        result = results[key]
        assert result is not None
        assert wanted is not None
        assert_bitwise(key, result, wanted.to(result.dtype))
    output, gradient = results["output"], results["gradient of input"]
    assert output is not None
    assert gradient is not None
    assert (output.dtype, gradient.dtype) == (torch.bfloat16, torch.float32)
    line = "conv_norm: autocast: wanted torch.bfloat16, got torch.float16"
    with refused(ValueError, line), torch.autocast(gpu.type, torch.float16):
        run(case)({name: tensor.to(gpu) for name, tensor in inputs.items()})


# Variance 3 and eps 1 make the standard deviation 2, so that all of it is exact.
EXACT_CASES = (
    Case("plain", norm="none", relu=False),
    Case("relu_and_pool", norm="none", pool=True),
    Case("pool_alone_stride_2", norm="none", relu=False, pool=True, stride=2),
    Case("evaluation", training=False),
    Case("evaluation_and_pool", (2, 3, 5, 7, 9), training=False, pool=True),
)


@pytest.mark.parametrize("case", EXACT_CASES, ids=str)
def test_small_integers_are_exact(case: Case, device: torch.device) -> None:
    assert_small_integers_are_exact(case, device, torch.float32)


@pytest.mark.parametrize("case", EXACT_CASES, ids=str)
def test_bf16_of_small_integers_is_exact(case: Case, gpu: torch.device) -> None:
    assert_small_integers_are_exact(case, gpu, torch.bfloat16)


@pytest.mark.parametrize("norm", ["affine", "none"])
def test_bf16_is_rounded_once(norm: str, gpu: torch.device) -> None:
    case = Case("tiles", (2, 2, 16, 6, 7), 16, norm=norm, training=False)
    assert_small_integers_are_exact(case, gpu, torch.bfloat16, factor=33)


def assert_small_integers_are_exact(
    case: Case, device: torch.device, dtype: torch.dtype, factor: int = 1
) -> None:
    """With weights `factor` times as large: of 33, results have more bits than bfloat16."""
    channels = case.shape[-3]
    inputs = {name: small_integers(*t.shape, seed=7) for name, t in inputs_of(case).items()}
    inputs["weight"] *= factor
    mean = small_integers(*case.shape[:-4], channels, seed=8)
    statistics = torch.stack([mean, torch.full_like(mean, 3.0)], dim=-2)

    def ours(tensors: Tensors) -> Tensors:
        output, _ = ops.conv_norm(
            tensors["input"],
            tensors["weight"],
            None if case.norm == "none" else statistics.to(device),
            tensors.get("scale"),
            tensors.get("shift"),
            relu=case.relu,
            pool=case.pool,
            stride=case.stride,
            training=False,
            eps=1.0,
        )
        return {"output": output}

    def exact(tensors: Tensors) -> Tensors:
        value = tensors["input"]
        if case.norm != "none":
            value = (value - mean[..., None, :, None, None]) / 2
            value = value * tensors["scale"][:, None, None] + tensors["shift"][:, None, None]
        value = (value.relu() if case.relu else value).reshape(-1, *case.shape[-3:])
        value = F.avg_pool2d(value, 2) if case.pool else value
        value = F.conv2d(value, tensors["weight"], None, case.stride, case.kernel_size // 2)
        return {"output": value.reshape(*case.shape[:-3], *value.shape[1:])}

    cotangents = {"output": small_integers(*exact(inputs)["output"].shape, seed=9)}
    expected = evaluate(exact, cast(inputs, torch.float64), cotangents)
    inputs["input"] = inputs["input"].to(dtype)
    for name, result in evaluate(on_device(ours, device), inputs, cotangents).items():
        wanted = expected[name]
        assert result is not None
        assert wanted is not None
        assert_bitwise(name, result, wanted.to(result.dtype))


@pytest.mark.parametrize(
    ("name", "forward", "backward"), [("stem", 1, 1), ("reduction_a", 1, 2), ("reduction_b", 1, 3)]
)
def test_few_launches(name: str, forward: int, backward: int) -> None:
    """The weights, with what sums them the input up to its batch norm, and through that."""
    if (reason := why_not_emulated(OPERATION)) is not None:
        pytest.skip(reason)
    case = named(name)
    # The stem's images take no gradient.
    leaves = {
        key: tensor.requires_grad_(key != "input" or name != "stem")
        for key, tensor in inputs_of(case).items()
    }
    with emulated():
        before = emulated_launches()
        output = run(case)(leaves)["output"]
        assert emulated_launches() - before == forward
        output.backward(cotangents_of(case)["output"])
        assert emulated_launches() - before - forward == backward


@pytest.mark.parametrize("outputs", [16, 32])
def test_the_stems_weights_alone(outputs: int, device: torch.device) -> None:
    """Images take no gradient: no launch follows that could sum what the blocks have left."""
    case = replace(named("stem"), out_channels=outputs)
    inputs = {name: small_integers(*t.shape, seed=7) for name, t in inputs_of(case).items()}
    cotangents = {name: small_integers(*t.shape, seed=9) for name, t in cotangents_of(case).items()}
    wanted = evaluate(stock(case, statistics_too=False), cast(inputs, torch.float64), cotangents)[
        "gradient of weight"
    ]
    leaves = {name: t.to(device).requires_grad_(name == "weight") for name, t in inputs.items()}
    output = on_device(run(case), device)(leaves)["output"]
    output.backward(cotangents["output"].to(output))
    gradient = leaves["weight"].grad
    assert gradient is not None
    assert wanted is not None
    assert_bitwise("gradient of weight", gradient.cpu(), wanted.to(gradient.dtype))


ARCHITECTURES = [case for case in CASES if len(case.shape) == 5 and case.training]


@pytest.mark.parametrize("case", ARCHITECTURES, ids=str)
def test_an_architecture_does_not_depend_on_the_others(case: Case, device: torch.device) -> None:
    inputs, cotangents = inputs_of(case), cotangents_of(case)
    together = evaluate(on_device(run(case), device), inputs, cotangents)
    for a in range(case.shape[0]):
        alone = evaluate(
            on_device(run(replace(case, shape=case.shape[1:])), device),
            {**inputs, "input": inputs["input"][a]},
            {"output": cotangents["output"][a]},
        )
        for name in ("output", "mean", "variance", "gradient of input"):
            all_of, own = together[name], alone[name]
            assert all_of is not None
            assert own is not None
            assert_bitwise(f"{name}[{a}]", all_of[a], own)


@pytest.mark.parametrize("name", ["reduction_b", "shortcut", "two_architectures"])
def test_any_layout(name: str, device: torch.device) -> None:
    case = named(name)
    inputs = {key: tensor.contiguous() for key, tensor in inputs_of(case).items()}
    cotangents = {key: tensor.contiguous() for key, tensor in cotangents_of(case).items()}
    with ops.float32_conv_precision("highest"):
        results = evaluate(on_device(run(case), device), inputs, cotangents)
    assert_as_close(results, expected(case, 0.0), terms=terms_of(case))


@pytest.mark.parametrize("name", ["reduction_b", "shortcut", "two_architectures"])
def test_expanded_gradient(name: str, device: torch.device) -> None:
    case = named(name)
    shape = cotangents_of(case)["output"].shape
    per_channel = dense_random(case.out_channels, 1, 1, seed=6)
    cotangents = {"output": per_channel.expand(shape)}
    with ops.float32_conv_precision("highest"):
        results = evaluate(on_device(run(case), device), inputs_of(case), cotangents)
    expanded = expect(stock(case), inputs_of(case), cotangents)
    assert_as_close(results, expanded, terms=terms_of(case))


@pytest.mark.parametrize("norm", ["none", "affine"])
@pytest.mark.parametrize("shape", [(0, 5, 6, 4), (2, 0, 5, 6, 4)], ids=str)
def test_no_images(shape: tuple[int, ...], norm: str, device: torch.device) -> None:
    case = Case("none", shape, norm=norm, pool=True)
    output_shape = (*shape[:-3], 6, 3, 2)
    cotangents = {"output": torch.zeros(output_shape)}
    results = evaluate(on_device(run(case), device), inputs_of(case), cotangents)
    output, image_gradient, weight_gradient = (
        results[name] for name in ("output", "gradient of input", "gradient of weight")
    )
    assert output is not None
    assert image_gradient is not None
    assert weight_gradient is not None
    assert output.shape == output_shape
    assert image_gradient.shape == shape
    assert torch.equal(weight_gradient, torch.zeros(6, 5, 3, 3))


def test_a_loss_older_than_a_change_of_the_weight_is_refused() -> None:
    inputs = inputs_of(named("plain"))
    weight = inputs["weight"].requires_grad_()
    output, _ = ops.conv_norm(inputs["input"], weight)
    with torch.no_grad():
        weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize(
    "case",
    [
        Case("affine", (3, 2, 3, 4), 3, pool=False, stride=2),
        Case("pool", (2, 2, 2, 5, 4), 3, 1, norm="plain", pool=True),
        Case("none", (2, 2, 3, 3), 3, norm="none"),
        Case("evaluation", (2, 2, 3, 3), 3, training=False),
    ],
    ids=str,
)
def test_gradcheck(case: Case, device: torch.device) -> None:
    inputs = cast(inputs_of(case), torch.float64)

    def function(*tensors: Tensor) -> Tensor:
        return on_device(run(case), device)(dict(zip(inputs, tensors, strict=True)))["output"]

    leaves = tuple(tensor.requires_grad_() for tensor in inputs.values())
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize(
    "case", [named("plain"), named("odd_pool"), named("five_architectures")], ids=str
)
def test_opcheck(case: Case) -> None:
    opcheck(case, inputs_of(case), cotangents_of(case)["output"])


def test_bf16_opcheck(gpu: torch.device) -> None:
    case = named("odd_pool")
    inputs = stored_as_bf16(inputs_of(case), "input")
    gradient = cotangents_of(case)["output"].bfloat16()
    opcheck(case, {name: t.to(gpu) for name, t in inputs.items()}, gradient.to(gpu))


def opcheck(case: Case, inputs: dict[str, Tensor], gradient: Tensor) -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    statistics = None if case.norm == "none" else statistics_of(inputs["input"])
    tensors = (leaves["input"], leaves["weight"], statistics)
    affine = (leaves.get("scale"), leaves.get("shift"))
    options = (case.relu, case.pool, case.stride, True, 1e-5, True)
    torch.library.opcheck(torch.ops.cwkernels.conv_norm.default, (*tensors, *affine, *options))
    detached = [t if t is None else t.detach() for t in (*tensors, *affine)]
    operation = torch.ops.cwkernels.conv_norm_backward.default
    for need_input in (True, False):
        torch.library.opcheck(operation, (gradient, *detached, *options, need_input))


def call(
    input: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    statistics: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    pool: bool = False,
    stride: int = 1,
) -> None:
    """A good call but for what is given."""
    ops.conv_norm(
        torch.ones(2, 5, 6, 4) if input is None else input,
        torch.ones(6, 5, 3, 3) if weight is None else weight,
        statistics,
        scale,
        shift,
        pool=pool,
        stride=stride,
    )


ONES = torch.ones(5)
GOOD = torch.ones(2, 5)
BAD: dict[str, Callable[[], None]] = {
    "input: wanted [N, C, H, W] or [A, N, C, H, W], got [5, 6, 4]": lambda: call(
        torch.ones(5, 6, 4)
    ),
    "input: wanted at least one architecture, got [0, 2, 5, 6, 4]": lambda: call(
        torch.ones(0, 2, 5, 6, 4)
    ),
    "input: wanted at least 2 x 2 pixels to average, got [2, 5, 6, 1]": lambda: call(
        torch.ones(2, 5, 6, 1), pool=True
    ),
    "input: wanted more than one value per channel in training, got [1, 5, 1, 1]": lambda: call(
        torch.ones(1, 5, 1, 1), statistics=GOOD
    ),
    "weight: wanted [K, 5, R, R] with R in 1, 3, 5, 7, got [6, 4, 3, 3]": lambda: call(
        weight=torch.ones(6, 4, 3, 3)
    ),
    "weight: wanted [K, 5, R, R] with R in 1, 3, 5, 7, got [6, 5, 3]": lambda: call(
        weight=torch.ones(6, 5, 3)
    ),
    "weight: wanted [K, 5, R, R] with R in 1, 3, 5, 7, got [6, 5, 3, 1]": lambda: call(
        weight=torch.ones(6, 5, 3, 1)
    ),
    "weight: wanted [K, 5, R, R] with R in 1, 3, 5, 7, got [6, 5, 2, 2]": lambda: call(
        weight=torch.ones(6, 5, 2, 2)
    ),
    "weight: wanted torch.float32, got torch.float64": lambda: call(
        weight=torch.ones(6, 5, 3, 3).double()
    ),
    "statistics: wanted [2, 5], got [2, 4]": lambda: call(statistics=torch.ones(2, 4)),
    "statistics: wanted [3, 2, 5], got [2, 5]": lambda: call(
        torch.ones(3, 2, 5, 6, 4), statistics=GOOD
    ),
    "statistics: wanted torch.float32, got torch.float64": lambda: call(statistics=GOOD.double()),
    "statistics: wanted a tensor beside scale, got None": lambda: call(scale=ONES, shift=ONES),
    "scale: wanted [5], got [4]": lambda: call(statistics=GOOD, scale=torch.ones(4), shift=ONES),
    "scale: wanted torch.float32, got torch.float64": lambda: call(
        statistics=GOOD, scale=ONES.double(), shift=ONES
    ),
    "shift: wanted [5], got [5, 1]": lambda: call(statistics=GOOD, scale=ONES, shift=ONES[:, None]),
    "shift: wanted scale and shift both or neither, got one": lambda: call(
        statistics=GOOD, scale=ONES
    ),
    "stride: wanted 1 or 2, got 3": lambda: call(stride=3),
}


@pytest.mark.parametrize(("message", "bad"), BAD.items(), ids=BAD)
@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_bad_input_is_refused(message: str, bad: Callable[[], None], backend: Backend) -> None:
    with ops.backend(backend), refused(ValueError, f"conv_norm: {message}"):
        bad()
