"""Each operation at the networks' shapes, beside stock PyTorch: `python -m bench.kernels`.

A speed is a ratio of medians: ours and stock take turns in one process, in both orders.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("OMP_PROC_BIND", "true")

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.devices import DEVICES, benchmark_device
from bench.harness import Action, Interval, clocks, describe_machine, interleave, write_json
from cwkernels.testing import (
    Call,
    ConvCase,
    Function,
    Tensors,
    dense_random,
    evaluate,
    network_calls,
    network_cases,
)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One line of the table: an operation, a shape, a direction.

    Attributes:
        milliseconds: our median.
        ratio: our time over stock's, with its 10-90 % interval.
        rate: our GFLOP/s, or calls a second where there is no one number of operations.
        unit: of the rate.
    """

    operation: str
    shape: str
    direction: str
    milliseconds: float
    ratio: Interval
    rate: float
    unit: str


def convolution_actions(case: ConvCase, device: torch.device) -> dict[str, Mapping[str, Action]]:
    """For each direction "high" and "highest", our precisions, and "stock", channels-last."""
    # The rows are read on the host.
    drawn = {
        name: tensor.to(device) if tensor.is_floating_point() else tensor
        for name, tensor in case.tensors(dense_random).items()
    }
    input, weight, rows, grad = (drawn[n] for n in ("input", "weight", "rows", "cotangent"))
    kernels = torch.ops.cwkernels
    stride, groups, size = case.stride, case.groups, case.kernel_size
    stock_input, stock_grad = input[0], grad[0]
    stock_weight = weight[0].contiguous(memory_format=torch.channels_last)

    def stock_backward(input_too: bool) -> Action:
        mask = [input_too, not input_too, False]
        geometry = ([stride] * 2, [size // 2] * 2, [1, 1], False, [0, 0], groups, mask)
        return lambda: torch.ops.aten.convolution_backward(
            stock_grad, stock_input, stock_weight, None, *geometry
        )

    def forward(winograd: bool) -> Action:
        return lambda: kernels.gather_conv(input, weight, rows, stride, groups, False, winograd)

    def input_gradient(winograd: bool) -> Action:
        return lambda: kernels.gather_conv_backward_input(
            grad, weight, rows, input.shape, stride, groups, winograd
        )

    def weight_gradient(winograd: bool) -> Action:
        return lambda: kernels.gather_conv_backward_weight(
            grad, input, rows, size, stride, groups, winograd
        )[1]

    return {
        "forward": {
            "high": forward(True),
            "highest": forward(False),
            "stock": lambda: F.conv2d(
                stock_input, stock_weight, None, stride, size // 2, groups=groups
            ),
        },
        "input gradient": {
            "high": input_gradient(True),
            "highest": input_gradient(False),
            "stock": stock_backward(True),
        },
        "weight gradient": {
            "high": weight_gradient(True),
            "highest": weight_gradient(False),
            "stock": stock_backward(False),
        },
    }


def moved(tensors: Tensors, device: torch.device) -> dict[str, Tensor]:
    """The tensors on the device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def same_result(first: Action, second: Action) -> bool:
    """Whether both give the same tensor, bit for bit."""
    one, other = first(), second()
    assert isinstance(one, Tensor)
    assert isinstance(other, Tensor)
    return torch.equal(one, other)


def operations(case: ConvCase) -> int:
    """Multiply-adds of one direction, twice, as each is two operations."""
    pixels = case.images * case.output_shape[-1] * case.output_shape[-2]
    return 2 * pixels * case.out_channels * case.in_channels // case.groups * case.kernel_size**2


def measure_convolution(case: ConvCase, rounds: int, device: torch.device) -> list[Row]:
    """The three directions of one convolution, each in both precisions where they differ."""
    rows = []
    for direction, actions in convolution_actions(case, device).items():
        alike = same_result(actions["high"], actions["highest"])
        precisions = ("highest",) if alike else ("high", "highest")
        measured = {name: actions[name] for name in (*precisions, "stock")}
        samples = interleave([measured], rounds=rounds, device=device)
        for precision in precisions:
            (median,) = samples.medians(precision)
            ratio = samples.ratio(precision, "stock")
            rate = operations(case) / median / 1e9
            name = f"{case.name} {precision}" if len(precisions) > 1 else case.name
            rows.append(Row("gather_conv", name, direction, median * 1e3, ratio, rate, "GFLOP/s"))
    return rows


def call_actions(call: Call, device: torch.device) -> dict[str, Mapping[str, Action]]:
    """Forward and, where there is one, with the backward pass: "ours" and "stock".

    Stock batch norms compute the statistics that they normalise by, where `norm_add` is given them
    and `conv_norm` computes those that the next one is given.
    """
    inputs, cotangents = moved(call.inputs(), device), moved(call.cotangents(), device)

    def forward(function: Function) -> Action:
        def action() -> Tensors:
            with torch.no_grad():
                return function(inputs)

        return action

    directions: dict[str, Mapping[str, Action]] = {
        "forward": {"ours": forward(call.run), "stock": forward(call.stock)}
    }
    if cotangents:
        directions["and backward"] = {
            "ours": lambda: evaluate(call.run, inputs, cotangents),
            "stock": lambda: evaluate(call.stock, inputs, cotangents),
        }
    return directions


def measure_call(call: Call, rounds: int, device: torch.device = CPU) -> list[Row]:
    """Both directions of one call."""
    rows = []
    for direction, actions in call_actions(call, device).items():
        samples = interleave([actions], rounds=rounds, device=device)
        (median,) = samples.medians("ours")
        name, ratio = f"{call.operation} {call.shape}", samples.ratio("ours", "stock")
        rows.append(
            Row(call.operation, name, direction, median * 1e3, ratio, 1 / median, "calls/s")
        )
    return rows


def measure(only: str, batch: int, rounds: int, device: torch.device = CPU) -> Iterator[Row]:
    """All rows whose name contains `only`, as they come."""
    for case in network_cases(images=batch):
        if only in case.name:
            yield from measure_convolution(case, rounds, device)
    for call in network_calls(images=batch):
        if only in f"{call.operation} {call.shape}":
            yield from measure_call(call, rounds, device)


def line(row: Row) -> str:
    """One line of the table."""
    ratio = f"{row.ratio.value:5.2f} [{row.ratio.low:.2f}-{row.ratio.high:.2f}]"
    rate = f"{row.rate:7.1f} {row.unit}"
    return f"{row.shape:<44}{row.direction:<17}{row.milliseconds:8.3f} ms  x{ratio:<18}{rate}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a line at a time, and writes JSON if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.kernels")
    parser.add_argument("--batch", type=int, default=64, help="images a batch (64)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (20)")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where (cpu)")
    options = parser.parse_args(arguments)
    with benchmark_device(options.device) as device:
        content = run(options, device)
    if options.json is not None:
        write_json(options.json, content)


def run(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measures and prints a line at a time; the record."""
    machine = describe_machine(device)
    print(machine.line())
    print(f"batch {options.batch}; x: our time over stock channels-last torch, 10-90 % in brackets")
    before, rows = clocks(device), []
    for row in measure(options.only, options.batch, options.rounds, device):
        rows.append(row)
        print(line(row), flush=True)
    return {
        "machine": asdict(machine),
        "device": options.device,
        "batch": options.batch,
        "rounds": options.rounds,
        "clocks": [before, clocks(device)],
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    main()
