"""Cases of `cw.ops.batch`."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cwkernels import ops
from cwkernels.testing.cases.call import Call
from cwkernels.testing.functions import Function, Tensors

MEAN = (0.4914, 0.4822, 0.4465, 0.5)
DEVIATION = (0.2470, 0.2435, 0.2616, 0.25)


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: for the ids of tests.
        shape: [M, C, H, W], of all images.
        count: how many are asked for.
        shift: the largest; None for no shifts.
        flips: whether some are mirrored.
    """

    name: str
    shape: tuple[int, int, int, int] = (7, 3, 5, 6)
    count: int = 9
    shift: int | None = 4
    flips: bool = True

    def __str__(self) -> str:
        """The name, for the ids of parametrised tests."""
        return self.name


def inputs_of(case: Case) -> dict[str, Tensor]:
    """ "images", "indices", "mean", "deviation" and what else the case has."""
    generator = torch.Generator().manual_seed(len(case.name))

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    stored, channels, _, _ = case.shape
    inputs = {
        "images": draw(0, 256, *case.shape).to(torch.uint8),
        "indices": draw(0, stored, case.count) if case.count else torch.empty(0).long(),
        "mean": torch.tensor(MEAN[:channels]) * 255,
        "deviation": torch.tensor(DEVIATION[:channels]) * 255,
    }
    if case.shift is not None:
        inputs["shifts"] = draw(-case.shift, case.shift + 1, case.count, 2)
    if case.flips:
        inputs["flips"] = draw(0, 2, case.count) == 1
    return inputs


def run(case: Case) -> Function:
    """The operation."""

    def function(tensors: Tensors) -> Tensors:
        output = ops.batch(
            *(tensors.get(name) for name in ("images", "indices", "shifts", "flips")),  # type: ignore[arg-type]
            mean=tensors["mean"].detach(),
            deviation=tensors["deviation"].detach(),
        )
        return {"output": output}

    return function


def stock(case: Case) -> Function:
    """The stock operations of an augmented batch, an image at a time: roll, mask, normalise."""

    def one(image: Tensor, down: int, right: int, flip: bool) -> Tensor:
        image = image.flip(-1) if flip else image
        _, height, width = image.shape
        if abs(down) >= height or abs(right) >= width:
            return torch.zeros_like(image)
        rows = slice(max(-down, 0), height - max(down, 0))
        columns = slice(max(-right, 0), width - max(right, 0))
        padding = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
        return torch.nn.functional.pad(image[:, rows, columns], padding)

    def function(tensors: Tensors) -> Tensors:
        mean, deviation = tensors["mean"].detach(), tensors["deviation"].detach()
        count = len(tensors["indices"])
        shifts = tensors["shifts"].tolist() if case.shift is not None else [[0, 0]] * count
        flips = tensors["flips"].tolist() if case.flips else [False] * count
        chosen = tensors["images"][tensors["indices"]]
        images = [
            one(image, down, right, flip)
            for image, (down, right), flip in zip(chosen, shifts, flips, strict=True)
        ]
        values = torch.stack(images) if images else chosen
        values = (values.to(mean.dtype) - mean[:, None, None]) / deviation[:, None, None]
        return {"output": values.contiguous(memory_format=torch.channels_last)}

    return function


def network_calls(images: int) -> list[Call]:
    """What makes a step's and a scoring pass's input."""
    return [
        _call(Case("training", (1000, 3, 32, 32), images)),
        _call(Case("evaluation", (1000, 3, 32, 32), images, shift=None, flips=False)),
    ]


def _call(case: Case) -> Call:
    return Call("batch", case.name, run(case), stock(case), partial(inputs_of, case), dict, {"": 2})
