"""Every operation at the networks' shapes, as the benchmark measures it."""

from pkgutil import iter_modules

import pytest
import torch

from cwkernels import ops
from cwkernels.testing import (
    Call,
    Tensors,
    as_reference,
    assert_as_close,
    evaluate,
    expect,
    network_calls,
)

pytestmark = pytest.mark.usefixtures("poisoned")

CALLS = network_calls()


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_is_as_close_as_stock_torch(call: Call, device: torch.device) -> None:
    inputs, cotangents = call.inputs(), call.cotangents()
    expected = expect(call.stock, inputs, cotangents)
    with ops.float32_conv_precision("highest"):
        for function in (call.run, as_reference(call.run)):
            assert_as_close(evaluate(function, inputs, cotangents), expected, terms=call.terms)
    if call.convolutions > 0:
        assert_as_close(
            evaluate(call.run, inputs, cotangents),
            expected,
            terms=call.terms,
            precision="high",
            convolutions=call.convolutions,
        )


def test_every_operation_has_calls() -> None:
    modules = {module.name for module in iter_modules(ops.__path__)}
    operations = {name for name in modules if not name.startswith("_")} - {
        "backend",
        "precision",
        "workspace",
        # They compute no floats.
        "device_faults",
        "nb201_plan",
        "nb201_select",
        "select",
    }
    assert {call.operation for call in CALLS} == operations - {"gather_conv"}
    assert len({str(call) for call in CALLS}) == len(CALLS)


def test_a_wrong_result_at_a_networks_shape_fails() -> None:
    call = next(call for call in CALLS if call.operation == "norm_add")

    def wrong(tensors: Tensors) -> Tensors:
        return {"output": call.run(tensors)["output"] * (1 + 1e-4)}

    inputs, cotangents = call.inputs(), call.cotangents()
    with pytest.raises(AssertionError, match="output: relative error"):
        assert_as_close(
            evaluate(wrong, inputs, cotangents),
            expect(call.stock, inputs, cotangents),
            terms=call.terms,
        )
