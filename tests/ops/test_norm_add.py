"""norm_add against stock batch norm."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.ops.backend import Backend
from cwkernels.testing import (
    Expected,
    Tensors,
    as_reference,
    assert_as_close,
    assert_bitwise,
    assert_within,
    cast,
    dense_random,
    evaluate,
    expect,
    on_device,
    refused,
    small_integers,
    statistics_of,
    stored_as_bf16,
)
from cwkernels.testing.cases.norm_add import (
    Case,
    cotangents_of,
    inputs_of,
    run,
    stock,
    terms_of,
)
from cwkernels.testing.emulated import (
    EmulatedDevice,
    emulated,
    emulated_launches,
    why_not_emulated,
)
from cwkernels.testing.inputs import channels_last

OPERATION = "norm_add"
pytestmark = pytest.mark.usefixtures("poisoned")


CASES = (
    Case("everything"),
    Case("plain", affine=False, shortcut=False, relu=False),
    Case("stem", (3, 32, 16, 16), shortcut=False),
    Case("reduction", (3, 32, 8, 8), relu=False),
    Case("head", (3, 64, 4, 4), shortcut=False),
    Case("one_row_one_channel", (2, 1, 1, 5)),
    Case("large_eps", eps=0.5),
    Case("two_architectures", (2, 3, 5, 7, 9)),
    Case("five_architectures", (5, 2, 7, 3, 1), affine=False, shortcut=False),
    Case("evaluation", training=False),
    Case("two_architectures_in_evaluation", (2, 3, 5, 7, 9), training=False, relu=False),
    # Several blocks of pixels, the last one short; channels that fill their vectors, and not.
    Case("blocks", (3, 16, 31, 33)),
    Case("blocks_without_shortcut", (2, 3, 13, 31, 9), shortcut=False),
    Case("wide", (2, 300, 7, 5), relu=False),
)
ARCHITECTURES = [case for case in CASES if len(case.shape) == 5 and case.training]


@cache
def expected(case: Case, mean: float) -> Expected:
    return expect(stock(case), inputs_of(case, mean), cotangents_of(case))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_is_as_close_as_stock_torch(case: Case, mean: float, device: torch.device) -> None:
    function = on_device(run(case), device)
    results = evaluate(function, inputs_of(case, mean), cotangents_of(case))
    assert_as_close(results, expected(case, mean), terms=terms_of(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_is_stock_torch(case: Case) -> None:
    results = evaluate(as_reference(run(case)), inputs_of(case), cotangents_of(case))
    assert_as_close(results, expected(case, 0.0), terms=terms_of(case))


def of_bf16(tensors: Tensors) -> dict[str, Tensor]:
    return stored_as_bf16(tensors, "input", "shortcut", "output")


BF16_CASES = ("everything", "two_architectures", "blocks", "five_architectures", "evaluation")


@pytest.mark.parametrize("name", BF16_CASES)
def test_bf16_is_as_close_as_one_rounding(name: str, gpu: torch.device) -> None:
    case = next(case for case in CASES if case.name == name)
    inputs, cotangents = of_bf16(inputs_of(case)), of_bf16(cotangents_of(case))
    results = evaluate(on_device(run(case), gpu), inputs, cotangents)
    wanted = expect(as_reference(run(case)), inputs, cotangents)
    assert_as_close(results, wanted, terms=terms_of(case))


def test_bf16_needs_a_gpu() -> None:
    inputs = of_bf16(inputs_of(CASES[0]))
    line = (
        "norm_add: input: wanted float32 or float64 on the CPU, "
        "got bfloat16, whose kernels need a GPU"
    )
    with refused(RuntimeError, line):
        run(CASES[0])(inputs)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
def test_small_integers_are_exact(relu: bool, shortcut: bool, device: torch.device) -> None:
    assert_small_integers_are_exact(relu, shortcut, device)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("channels", [5, 8])
def test_bf16_of_integers_is_rounded_once(
    relu: bool, shortcut: bool, channels: int, gpu: torch.device
) -> None:
    assert_small_integers_are_exact(relu, shortcut, gpu, channels, torch.bfloat16)


def assert_small_integers_are_exact(
    relu: bool,
    shortcut: bool,
    device: torch.device,
    channels: int = 5,
    dtype: torch.dtype = torch.float32,
) -> None:
    # Variance 3 and eps 1 make the standard deviation 2, so that all of it is exact.
    shape = (3, channels, 7, 9)
    case = Case("exact", shape, relu=relu, shortcut=shortcut, training=False, eps=1.0)
    inputs = {name: small_integers(*t.shape, seed=7) for name, t in inputs_of(case).items()}
    if dtype == torch.bfloat16:
        inputs["shift"] *= 201  # so that outputs have more than its 8 bits
    mean = small_integers(channels, seed=8)

    def ours(tensors: Tensors) -> Tensors:
        statistics = torch.stack([mean, torch.full_like(mean, 3.0)]).to(device)
        named = (tensors.get(name) for name in ("scale", "shift", "shortcut"))
        output = ops.norm_add(
            tensors["input"], statistics, *named, relu=relu, training=False, eps=1.0
        )
        return {"output": output}

    def exact(tensors: Tensors) -> Tensors:
        value = (tensors["input"] - mean[:, None, None]) / 2
        value = value * tensors["scale"][:, None, None] + tensors["shift"][:, None, None]
        value = value + tensors["shortcut"] if shortcut else value
        return {"output": F.relu(value) if relu else value}

    cotangents = {"output": small_integers(*case.shape, seed=9)}
    wanted = evaluate(exact, cast(inputs, torch.float64), cotangents)
    if dtype == torch.bfloat16:
        inputs = of_bf16(inputs)
    for name, result in evaluate(on_device(ours, device), inputs, cotangents).items():
        reference = wanted[name]
        assert result is not None
        assert reference is not None
        assert_bitwise(name, result, reference.to(result.dtype))


@pytest.mark.parametrize("name", ["blocks", "blocks_without_shortcut", "wide"])
def test_any_number_of_threads_gives_the_same(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    inputs, cotangents = inputs_of(case), cotangents_of(case)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(evaluate(run(case), inputs, cotangents))
    torch.set_num_threads(before)
    for key, one in results[0].items():
        several = results[1][key]
        assert one is not None
        assert several is not None
        assert_bitwise(key, several, one)


@pytest.mark.skipif(why_not_emulated(OPERATION) is not None, reason=f"{OPERATION} is not emulated")
@pytest.mark.parametrize("processors", [1, 40])
def test_emulated_schedules_give_the_same(processors: int) -> None:
    """On 40 processors 48 blocks leave sums for each of two runs of channels, in three groups."""
    case = Case("groups", (2, 3, 132, 32, 32))
    inputs, cotangents = inputs_of(case), cotangents_of(case)
    results = []
    for seed in range(3):
        with emulated(EmulatedDevice(capability=90, processors=processors, seed=seed)):
            results.append(evaluate(run(case), inputs, cotangents))
            assert emulated_launches() == 3
    assert_as_close(results[0], expect(stock(case), inputs, cotangents), terms=terms_of(case))
    for other in results[1:]:
        for key, one in results[0].items():
            again = other[key]
            assert one is not None
            assert again is not None
            assert_bitwise(key, again, one)


@pytest.mark.parametrize("case", ARCHITECTURES, ids=str)
def test_an_architecture_does_not_depend_on_the_others(case: Case, device: torch.device) -> None:
    inputs, cotangents = inputs_of(case), cotangents_of(case)
    together = evaluate(on_device(run(case), device), inputs, cotangents)
    separate = [name for name in ("input", "shortcut") if name in inputs]
    for a in range(case.shape[0]):
        alone = evaluate(
            on_device(run(replace(case, shape=case.shape[1:])), device),
            {**inputs, **{name: inputs[name][a] for name in separate}},
            {"output": cotangents["output"][a]},
        )
        for name in ("output", *(f"gradient of {name}" for name in separate)):
            all_of, own = together[name], alone[name]
            assert all_of is not None
            assert own is not None
            assert_bitwise(f"{name}[{a}]", all_of[a], own)


def test_affine_gradients_are_summed_in_order(device: torch.device) -> None:
    case = Case("five", (5, 2, 7, 3, 4))
    inputs, cotangents = inputs_of(case), cotangents_of(case)
    together = evaluate(on_device(run(case), device), inputs, cotangents)
    singles = [
        evaluate(
            on_device(run(replace(case, shape=case.shape[1:])), device),
            {**inputs, "input": inputs["input"][a], "shortcut": inputs["shortcut"][a]},
            {"output": cotangents["output"][a]},
        )
        for a in range(5)
    ]
    for name in ("gradient of scale", "gradient of shift"):
        result, total = together[name], torch.zeros(7)
        for single in singles:
            own = single[name]
            assert own is not None
            total += own
        assert result is not None
        assert_bitwise(name, result, total)


@pytest.mark.parametrize("name", ["everything", "two_architectures"])
@pytest.mark.parametrize("expand", [False, True])
def test_any_layout_and_expanded_gradients(name: str, expand: bool) -> None:
    case = next(case for case in CASES if case.name == name)
    inputs = {key: tensor.contiguous() for key, tensor in inputs_of(case).items()}
    cotangents = {key: tensor.contiguous() for key, tensor in cotangents_of(case).items()}
    if expand:
        cotangents = {"output": dense_random(*case.shape[-2:], seed=8).expand(case.shape)}
    results = evaluate(run(case), inputs, cotangents)
    wanted = expect(stock(case), inputs, cotangents)
    assert_as_close(results, wanted, terms=terms_of(case))
    output = results["output"]
    assert output is not None
    assert output.movedim(-3, -1).is_contiguous()


def averaged(gradient: Tensor) -> Tensor:
    """As a global average leaves it."""
    return gradient[..., :1, :1].expand(gradient.shape)


def some_pixels(gradient: Tensor) -> Tensor:
    return gradient.repeat_interleave(2, -1).repeat_interleave(3, -2)[..., 1::3, ::2]


def some_channels(gradient: Tensor) -> Tensor:
    return channels_last(torch.cat([gradient, gradient * 2], -3)).narrow(-3, 0, gradient.shape[-3])


def of_other_images(gradient: Tensor) -> Tensor:
    return gradient.narrow(-4, 0, 1).expand(gradient.shape)


@pytest.mark.parametrize("name", ["blocks", "blocks_without_shortcut", "wide"])
@pytest.mark.parametrize("lay", [averaged, some_pixels, some_channels, of_other_images])
def test_gradients_are_read_where_they_lie(
    name: str, lay: Callable[[Tensor], Tensor], device: torch.device, threads: int
) -> None:
    case = next(case for case in CASES if case.name == name)
    inputs = {name: tensor.to(device) for name, tensor in inputs_of(case).items()}
    gradient = lay(cotangents_of(case)["output"].to(device))
    results = evaluate(run(case), inputs, {"output": gradient})
    wanted = evaluate(run(case), inputs, {"output": channels_last(gradient)})
    for key, own in wanted.items():
        result = results[key]
        assert own is not None
        assert result is not None
        assert_bitwise(key, result, own)


def saved_elements(case: Case) -> int:
    """How many elements a forward pass leaves for backward beside its inputs."""
    leaves = {name: t.requires_grad_() for name, t in inputs_of(case).items()}
    inputs = {t.data_ptr() for t in leaves.values()}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: saved[0]):
        run(case)(leaves)
    return sum(t.numel() for t in saved if t.data_ptr() not in inputs)


def test_the_output_is_saved_only_where_a_shortcut_was_rectified() -> None:
    statistics, values = 2 * 5, 3 * 5 * 7 * 9
    for shortcut in (False, True):
        for relu in (False, True):
            case = Case("saved", shortcut=shortcut, relu=relu)
            assert saved_elements(case) == statistics + (values if shortcut and relu else 0)


@pytest.mark.parametrize("shape", [(0, 5, 6, 4), (2, 0, 5, 6, 4)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_no_images(shape: tuple[int, ...], training: bool) -> None:
    case = Case("none", shape, training=training)
    results = evaluate(run(case), inputs_of(case), {"output": torch.zeros(shape)})
    for name in ("output", "gradient of input", "gradient of shortcut"):
        result = results[name]
        assert result is not None
        assert result.shape == shape
    for name in ("gradient of scale", "gradient of shift"):
        result = results[name]
        assert result is not None
        assert torch.equal(result, torch.zeros(5))


def test_trains_as_a_stock_module() -> None:
    case = Case("module", shortcut=False)
    inputs = inputs_of(case)
    module = nn.BatchNorm2d(5)
    with torch.no_grad():
        module.weight.copy_(inputs["scale"])
        module.bias.copy_(inputs["shift"])
    output = run(case)(inputs)["output"]
    assert_within("float32 network", "output", output, module(inputs["input"]).relu())


def test_the_statistics_take_no_gradient() -> None:
    input = dense_random(2, 5, 3, 4)
    statistics = statistics_of(input).requires_grad_()
    ops.norm_add(input.requires_grad_(), statistics).sum().backward()
    assert statistics.grad is None


@pytest.mark.parametrize("changed", ["input", "scale", "shift"])
def test_a_loss_older_than_a_change_is_refused(changed: str) -> None:
    leaves = {name: t.requires_grad_() for name, t in inputs_of(CASES[0]).items()}
    output = run(CASES[0])(leaves)["output"]
    with torch.no_grad():
        leaves[changed] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize(
    "case",
    [
        Case("everything", (3, 2, 3, 4)),
        Case("plain", (3, 2, 3, 4), affine=False, shortcut=False, relu=False),
        Case("architectures", (2, 2, 2, 3, 3)),
        Case("evaluation", (2, 2, 3, 3), training=False),
    ],
    ids=str,
)
def test_gradcheck(case: Case, device: torch.device) -> None:
    inputs = {name: t.to(device, torch.float64) for name, t in inputs_of(case).items()}

    def function(*tensors: Tensor) -> Tensor:
        return run(case)(dict(zip(inputs, tensors, strict=True)))["output"]

    leaves = tuple(tensor.requires_grad_() for tensor in inputs.values())
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[7]], ids=str)
def test_opcheck(case: Case) -> None:
    opcheck(case, inputs_of(case), cotangents_of(case)["output"])


def test_bf16_opcheck(gpu: torch.device) -> None:
    inputs, gradient = of_bf16(inputs_of(CASES[0])), of_bf16(cotangents_of(CASES[0]))["output"]
    opcheck(CASES[0], {name: t.to(gpu) for name, t in inputs.items()}, gradient.to(gpu))


def opcheck(case: Case, inputs: dict[str, Tensor], gradient: Tensor) -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    statistics = statistics_of(inputs["input"])
    others = [leaves.get(name) for name in ("scale", "shift", "shortcut")]
    torch.library.opcheck(
        torch.ops.cwkernels.norm_add.default,
        (leaves["input"], statistics, *others, case.relu, True, 1e-5),
    )
    affine = [None if tensor is None else tensor.detach() for tensor in others[:2]]
    input = inputs["input"].detach()
    output = torch.rand_like(input) if case.relu and case.shortcut else None
    torch.library.opcheck(
        torch.ops.cwkernels.norm_add_backward.default,
        (gradient, input, statistics, *affine, output, case.relu, case.shortcut, True, 1e-5),
    )


GOOD, STATISTICS, ONES = torch.ones(2, 5, 6, 4), torch.ones(2, 5), torch.ones(5)
BAD: dict[str, Callable[[], Tensor]] = {
    "input: wanted [N, C, H, W] or [A, N, C, H, W], got [5, 6, 4]": lambda: ops.norm_add(
        GOOD[0], STATISTICS
    ),
    "input: wanted at least one architecture, got [0, 2, 5, 6, 4]": lambda: ops.norm_add(
        torch.ones(0, 2, 5, 6, 4), torch.ones(0, 2, 5)
    ),
    "input: wanted more than one value per channel in training, got [1, 5, 1, 1]": lambda: (
        ops.norm_add(torch.ones(1, 5, 1, 1), STATISTICS)
    ),
    "statistics: wanted [2, 5], got [5]": lambda: ops.norm_add(GOOD, ONES),
    "statistics: wanted [3, 2, 5], got [2, 5]": lambda: ops.norm_add(
        GOOD.expand(3, 2, 5, 6, 4), STATISTICS
    ),
    "statistics: wanted torch.float32, got torch.float64": lambda: ops.norm_add(
        GOOD, STATISTICS.double()
    ),
    "scale: wanted [5], got [4]": lambda: ops.norm_add(GOOD, STATISTICS, ONES[:4], ONES),
    "shift: wanted [5], got [4]": lambda: ops.norm_add(GOOD, STATISTICS, ONES, ONES[:4]),
    "shift: wanted torch.float32, got torch.float64": lambda: ops.norm_add(
        GOOD, STATISTICS, ONES, ONES.double()
    ),
    "shift: wanted scale and shift both or neither, got one": lambda: ops.norm_add(
        GOOD, STATISTICS, ONES
    ),
    "shortcut: wanted torch.float32 [2, 5, 6, 4], got torch.float32 [5, 6, 4]": lambda: (
        ops.norm_add(GOOD, STATISTICS, shortcut=GOOD[0])
    ),
    "shortcut: wanted torch.float32 [2, 5, 6, 4], got torch.float64 [2, 5, 6, 4]": lambda: (
        ops.norm_add(GOOD, STATISTICS, shortcut=GOOD.double())
    ),
}


@pytest.mark.parametrize(("message", "bad"), BAD.items(), ids=BAD)
@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_bad_input_is_refused(message: str, bad: Callable[[], Tensor], backend: Backend) -> None:
    with ops.backend(backend), refused(ValueError, f"norm_add: {message}"):
        bad()
