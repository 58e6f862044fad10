"""A backward pass that is recorded, to be differentiated itself, is refused by name."""

import pytest
import torch

from cwkernels.testing import Call, network_calls, refused

DIFFERENTIABLE = {call.operation: call for call in network_calls() if call.cotangents()}


@pytest.mark.parametrize("call", DIFFERENTIABLE.values(), ids=str)
def test_double_backward_is_a_named_error(call: Call) -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in call.inputs().items()}
    cotangents = call.cotangents()
    outputs = call.run(leaves)
    with refused(RuntimeError, f"{call.operation}: backward: wanted create_graph=False, got True"):
        torch.autograd.grad(
            [outputs[name] for name in cotangents],
            list(leaves.values()),
            list(cotangents.values()),
            create_graph=True,
            allow_unused=True,
        )


def test_all_that_have_gradients_are_tried() -> None:
    expected = {"copy_rows", "conv_norm", "reduction_conv", "norm_add", "nb201_cell"}
    assert set(DIFFERENTIABLE) >= expected | {"inverted_bottleneck"}
