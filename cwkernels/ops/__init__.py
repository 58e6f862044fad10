"""The operations, each with its plain-torch reference beside it. A leaf: needs torch only."""

import torch

from cwkernels.ops.backend import backend, current_backend, set_backend
from cwkernels.ops.batch import batch
from cwkernels.ops.conv_norm import conv_norm
from cwkernels.ops.copy_rows import copy_rows
from cwkernels.ops.device_faults import synchronize
from cwkernels.ops.gather_conv import gather_conv
from cwkernels.ops.inverted_bottleneck import inverted_bottleneck
from cwkernels.ops.nb201_cell import nb201_cell
from cwkernels.ops.nb201_plan import NB201Plan, nb201_plan
from cwkernels.ops.nb201_select import nb201_select
from cwkernels.ops.norm_add import norm_add
from cwkernels.ops.precision import (
    current_float32_conv_precision,
    float32_conv_precision,
    set_float32_conv_precision,
)
from cwkernels.ops.reduction_conv import reduction_conv
from cwkernels.ops.select import SelectLayout, select
from cwkernels.ops.sgd import SGDGroup, sgd, sgd_groups
from cwkernels.ops.update_statistics import update_statistics
from cwkernels.ops.workspace import release_workspace, workspace_bytes

__all__ = [
    "NB201Plan",
    "SGDGroup",
    "SelectLayout",
    "backend",
    "batch",
    "conv_norm",
    "copy_rows",
    "current_backend",
    "current_float32_conv_precision",
    "float32_conv_precision",
    "gather_conv",
    "has_cuda_kernels",
    "inverted_bottleneck",
    "nb201_cell",
    "nb201_plan",
    "nb201_select",
    "norm_add",
    "reduction_conv",
    "release_workspace",
    "select",
    "set_backend",
    "set_float32_conv_precision",
    "sgd",
    "sgd_groups",
    "synchronize",
    "update_statistics",
    "workspace_bytes",
]


def has_cuda_kernels() -> bool:
    """Whether every operation of this build has a CUDA kernel, so that networks run on a GPU."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    return all(
        has_kernel(name, "CUDA")
        for name in names
        if name.startswith("cwkernels::") and has_kernel(name, "CPU")
    )
