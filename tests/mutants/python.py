"""Planted bugs of the package: each a text put into a copy of it."""

from mutant import Mutant

_OPTIM = "cwkernels/optim.py"

PYTHON = (
    Mutant(
        "backward forgets the precision",
        "cwkernels/ops/gather_conv.py",
        "images.shape, ctx.stride, ctx.groups, ctx.winograd\n",
        "images.shape, ctx.stride, ctx.groups, False\n",
        ("tests/ops/test_precision.py",),
    ),
    Mutant(
        "dropped ReLU in the reference",
        "cwkernels/ops/nb201_cell.py",
        "F.conv2d(F.relu(value), weight,",
        "F.conv2d(value, weight,",
        ("tests/ops/test_nb201_cell.py",),
    ),
    Mutant(
        "dead convolutions computed",
        "cwkernels/ops/_cell_plan.py",
        "code != NONE and source in fed and target in reaches\n",
        "code != NONE and source in fed\n",
        ("tests/ops/test_nb201_cell.py",),
    ),
    Mutant(
        "biased running variance",
        "cwkernels/ops/update_statistics.py",
        "lerp_(measured[1] * unbias, factor)",
        "lerp_(measured[1], factor)",
        ("tests/ops/test_update_statistics.py",),
    ),
    Mutant(
        "gradients of a repeated row overwrite each other in copy_rows",
        "cwkernels/ops/_compact.py",
        "return unique, sums.index_add_(0, place, values)",
        "return unique, sums.index_copy_(0, place, values)",
        ("tests/ops/test_copy_rows.py",),
    ),
    Mutant(
        "combination read backwards",
        "cwkernels/nn/set_map.py",
        "for decision in self._host_reads:",
        "for decision in reversed(self._host_reads):",
        ("tests/networks/test_split.py",),
    ),
    Mutant(
        "every new row copies row 0",
        "cwkernels/networks/supernet.py",
        "sources = set_map.rows(combinations)",
        "sources = torch.zeros_like(set_map.rows(combinations))",
        ("tests/networks/test_split.py",),
    ),
    Mutant(
        "a split by `.data =`",
        "cwkernels/nn/bank.py",
        "tensor.set_(source)",
        "tensor.data = source",
        ("tests/networks/test_split_traps.py",),
    ),
    Mutant(
        "a shift that is not saved for backward",
        "cwkernels/ops/inverted_bottleneck.py",
        "for bank in group]\n    ctx.save_for_backward(",
        "for bank in group]\n    banks = [bank.detach().clone() for bank in banks]\n"
        "    ctx.save_for_backward(",
        ("tests/networks/test_split_traps.py",),
    ),
    Mutant(
        "stock optimizers not checked",
        "cwkernels/nn/bank.py",
        "register_optimizer_step_pre_hook(_check_stock_optimizer)",
        "",
        ("tests/networks/test_split_traps.py",),
    ),
    Mutant(
        "momentum does not follow the split",
        _OPTIM,
        "buffer[: sources.shape[0]] = rows",
        "pass",
        ("tests/optim",),
    ),
    Mutant(
        "unselected rows decay",
        _OPTIM,
        'idle_too = self._unselected == "zero_grad"',
        "idle_too = True",
        ("tests/networks/test_rows_read.py", "tests/optim"),
    ),
    Mutant(
        "candidates decay on the device before they were ever trained",
        _OPTIM,
        "torch.where(trained[:, None], live, -1)",
        "live",
        ("tests/optim/test_sgd_rows.py", "-k", "only_the_device_knows"),
    ),
    Mutant(
        "the device forgets which candidates were trained",
        _OPTIM,
        "torch._foreach_copy_(flags, list(trained.unbind()))",
        "pass",
        ("tests/optim/test_sgd_rows.py", "-k", "only_the_device_knows"),
    ),
    Mutant(
        "statistics written to row 0",
        "cwkernels/networks/supernet.py",
        "kinds = rows[:, self._norm_decisions].where(runs, -1).T",
        "kinds = (0 * rows)[:, self._norm_decisions].where(runs, -1).T",
        ("tests/networks/test_rows_read.py",),
    ),
)
