"""batch against stock torch, an image at a time: bit for bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.ops.backend import Backend
from cwkernels.testing import assert_bitwise, refused
from cwkernels.testing.cases.batch import Case, inputs_of, run, stock

OPERATION = "batch"
pytestmark = pytest.mark.usefixtures("poisoned")
BACKENDS = pytest.mark.parametrize("backend", ["kernels", "reference"])

CASES = (
    Case("everything"),
    Case("evaluation", shift=None, flips=False),
    Case("shifts", flips=False),
    Case("flips", shift=None),
    Case("cifar10", (20, 3, 32, 32), 17),
    # Sizes of which nothing is a multiple of four; a shift that leaves nothing.
    Case("odd", (3, 3, 5, 7), 11, shift=9),
    Case("one_channel_one_row", (2, 1, 1, 5), 3),
    Case("four_channels", (2, 4, 3, 2), 5),
    # Four neighbouring values of two rows.
    Case("over_rows", (3, 3, 4, 5), 6),
    # More than one task of the CPU's.
    Case("many", (5, 2, 4, 4), 100),
)


def moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@BACKENDS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_stock_torch(case: Case, backend: Backend, device: torch.device) -> None:
    inputs = inputs_of(case)
    with ops.backend(backend):
        output = run(case)(moved(inputs, device))["output"]
    assert output.movedim(1, -1).is_contiguous()
    assert_bitwise("output", output.cpu(), stock(case)(inputs)["output"])


def test_any_number_of_threads_gives_the_same(threads: int) -> None:
    inputs = inputs_of(CASES[-1])
    assert_bitwise("output", run(CASES[-1])(inputs)["output"], stock(CASES[-1])(inputs)["output"])


@BACKENDS
def test_every_value_of_a_pixel(backend: Backend, device: torch.device) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    mean, deviation = torch.tensor([125.3, 0.0, 255.0]), torch.tensor([63.0, 1.0, 3.0])
    with ops.backend(backend):
        output = ops.batch(
            images.to(device),
            torch.tensor([0], device=device),
            mean=mean.to(device),
            deviation=deviation.to(device),
        )
    wanted = (images.float() - mean[:, None, None]) / deviation[:, None, None]
    assert_bitwise("output", output.cpu(), wanted)


@BACKENDS
@pytest.mark.parametrize("shift", [2**63 - 1, -(2**63), 16, -16])
def test_a_shift_beyond_the_image_leaves_zeros(
    shift: int, backend: Backend, device: torch.device
) -> None:
    images = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8, device=device)
    mean, deviation = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 8.0])
    shifts = torch.tensor([[0, shift], [shift, 0]], device=device)
    with ops.backend(backend):
        output = ops.batch(
            images,
            torch.tensor([0, 0], device=device),
            shifts,
            mean=mean.to(device),
            deviation=deviation.to(device),
        )
    wanted = (-mean / deviation)[:, None, None].expand(2, 3, 16, 16)
    assert_bitwise("output", output.cpu(), wanted)


@BACKENDS
@pytest.mark.parametrize("name", ["images", "indices", "shifts", "flips", "mean", "deviation"])
def test_any_layout(name: str, backend: Backend, device: torch.device) -> None:
    case = CASES[0]
    inputs = moved(inputs_of(case), device)
    strided = torch.stack([inputs[name], torch.ones_like(inputs[name])], -1)[..., 0]
    before = strided.clone()
    with ops.backend(backend):
        wanted = run(case)(inputs)["output"]
        assert torch.equal(run(case)({**inputs, name: strided})["output"], wanted)
    assert torch.equal(strided, before)


@BACKENDS
@pytest.mark.parametrize(
    "case", [Case("none_wanted", count=0), Case("no_pixels", (2, 3, 0, 4), 3)], ids=str
)
def test_nothing(case: Case, backend: Backend, device: torch.device) -> None:
    with ops.backend(backend):
        output = run(case)(moved(inputs_of(case), device))["output"]
    assert output.shape == (case.count, *case.shape[1:])


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_opcheck(case: Case) -> None:
    inputs = inputs_of(case)
    names = ("images", "indices", "shifts", "flips", "mean", "deviation")
    arguments = tuple(inputs.get(name) for name in names)
    torch.library.opcheck(torch.ops.cwkernels.batch.default, arguments)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda inputs: inputs.__setitem__(name, tensor)


BAD: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "images: wanted torch.uint8 [M, C, H, W], got torch.float32 [7, 3, 5, 6]": put(
        "images", torch.ones(7, 3, 5, 6)
    ),
    "images: wanted torch.uint8 [M, C, H, W], got torch.uint8 [3, 5, 6]": put(
        "images", torch.ones(3, 5, 6, dtype=torch.uint8)
    ),
    "indices: wanted torch.int64 [N], got torch.int32 [9]": put(
        "indices", torch.ones(9, dtype=torch.int32)
    ),
    "indices: wanted torch.int64 [N], got torch.int64 [9, 1]": put(
        "indices", torch.ones(9, 1).long()
    ),
    "shifts: wanted torch.int64 [9, 2], got torch.int64 [8, 2]": put(
        "shifts", torch.ones(8, 2).long()
    ),
    "shifts: wanted torch.int64 [9, 2], got torch.float32 [9, 2]": put("shifts", torch.ones(9, 2)),
    "flips: wanted torch.bool [9], got torch.uint8 [9]": put(
        "flips", torch.ones(9, dtype=torch.uint8)
    ),
    "mean: wanted torch.float32 [3], got torch.float64 [3]": put("mean", torch.ones(3).double()),
    "deviation: wanted torch.float32 [3], got torch.float32 [4]": put("deviation", torch.ones(4)),
    "deviation: wanted a tensor on cpu, as images, got one on meta": put(
        "deviation", torch.ones(3, device="meta")
    ),
}


@BACKENDS
@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD)
def test_bad_input_is_refused(
    message: str, change: Callable[[dict[str, Tensor]], object], backend: Backend
) -> None:
    inputs = inputs_of(CASES[0])
    change(inputs)
    with ops.backend(backend), refused(ValueError, f"batch: {message}"):
        run(CASES[0])(inputs)


@BACKENDS
@pytest.mark.parametrize("index", [-1, 7])
def test_an_index_out_of_range_is_refused(index: int, backend: Backend) -> None:
    inputs = inputs_of(CASES[0])
    inputs["indices"][4] = index
    message = f"batch: indices[4]: wanted an image in [0, 7), got {index}"
    with ops.backend(backend), refused(RuntimeError, message):
        run(CASES[0])(inputs)
