"""The operations of the extension as a whole: which there are, which instruction set they run."""

import pytest
import torch

from cwkernels.testing import cpu_isa, cpu_isas, refused

# Each has a test_opcheck in the file of its operation, or here.
OPERATIONS = {
    "batch",
    "build_config",
    "conv_norm",
    "conv_norm_backward",
    "copy_rows",
    "cpu_isa",
    "cpu_isas",
    "gather_conv",
    "gather_conv_backward_input",
    "gather_conv_backward_weight",
    "inverted_bottleneck",
    "inverted_bottleneck_backward",
    "nb201_cell",
    "nb201_cell_backward",
    "nb201_plan",
    "nb201_select",
    "norm_add",
    "norm_add_backward",
    "poison_workspace",
    "reduction_conv",
    "reduction_conv_backward",
    "release_workspace",
    "select",
    "set_cpu_isa",
    "sgd",
    "sgd_slots",
    "update_statistics",
    "workspace_bytes",
}


def test_every_operation_is_checked() -> None:
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    ours = {name.removeprefix("cwkernels::") for name in names if name.startswith("cwkernels::")}
    assert ours == OPERATIONS


@pytest.mark.parametrize("name", ["cpu_isa", "cpu_isas", "build_config"])
def test_opcheck_of_what_gives_a_string(name: str) -> None:
    # AOTDispatcher's check compares tensors only.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.cwkernels, name).default, (), test_utils=checks)


def test_opcheck_of_set_cpu_isa() -> None:
    current = torch.ops.cwkernels.cpu_isa()
    torch.library.opcheck(torch.ops.cwkernels.set_cpu_isa.default, (current,))


def test_the_instruction_set_is_switched_and_restored() -> None:
    before = torch.ops.cwkernels.cpu_isa()
    assert before in cpu_isas()
    for name in cpu_isas():
        with cpu_isa(name):
            assert torch.ops.cwkernels.cpu_isa() == name
        assert torch.ops.cwkernels.cpu_isa() == before
    with pytest.raises(ZeroDivisionError), cpu_isa("baseline"):
        _ = 1 // 0
    assert torch.ops.cwkernels.cpu_isa() == before


@pytest.mark.parametrize("name", ["", "sse", "AVX2"])
def test_an_unknown_instruction_set_is_refused(name: str) -> None:
    before = torch.ops.cwkernels.cpu_isa()
    wanted = f"wanted one of {','.join(cpu_isas())} (what this machine runs), got '{name}'"
    with refused(RuntimeError, f"set_cpu_isa: name: {wanted}"):
        torch.ops.cwkernels.set_cpu_isa(name)
    assert torch.ops.cwkernels.cpu_isa() == before
