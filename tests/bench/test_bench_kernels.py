"""The benchmark of the operations measures every call of the networks, and knows a slow one."""

import time
from dataclasses import replace

import torch

from bench.kernels import line, measure, measure_call
from cwkernels.testing import Tensors, network_calls


def test_a_row_for_each_direction() -> None:
    rows = list(measure("nb201_head", batch=2, rounds=1))
    assert [(row.operation, row.direction) for row in rows] == [
        ("norm_add", "forward"),
        ("norm_add", "and backward"),
    ]
    assert all(row.milliseconds > 0 and row.unit == "calls/s" for row in rows)
    assert "norm_add nb201_head" in line(rows[0])
    assert [row.direction for row in measure("statistics macro", 2, 1)] == ["forward"]
    convolution = measure("nb201_1x1_64", batch=2, rounds=1)
    directions = ["forward", "input gradient", "weight gradient"]
    assert [row.direction for row in convolution] == directions
    both = list(measure("nb201_3x3_16", batch=2, rounds=1))
    names = ["nb201_3x3_16 high", "nb201_3x3_16 highest"]
    assert [(row.shape, row.direction) for row in both] == [
        (name, direction) for direction in directions for name in names
    ]


def test_a_slow_operation_is_seen() -> None:
    call = next(call for call in network_calls() if call.operation == "norm_add")

    def slow(tensors: Tensors) -> Tensors:
        time.sleep(0.05)
        assert not torch.is_grad_enabled() or tensors["input"].requires_grad
        return call.run(tensors)

    forward, both = measure_call(replace(call, run=slow), rounds=1)
    assert forward.milliseconds > 50
    assert both.milliseconds > 50
    assert forward.ratio.value > 2
