"""What was built, for what, and what this machine runs of it: `cw.build_info()`."""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from cwkernels import ops  # noqa: F401  (registers the operations)
from cwkernels._version import __version__
from cwkernels.ops import _library

GPU_VERIFIED: Mapping[str, str] = {
    **dict.fromkeys(("batch", "copy_rows", "nb201_plan", "select"), "1c56de8 (H200)"),
    "update_statistics": "7e9c9a2 (H200)",
    **dict.fromkeys(("sgd", "sgd_slots"), "7e9c9a2 (H200), changes since emulated"),
    **dict.fromkeys(
        ("conv_norm", "conv_norm_backward"), "1c56de8 (H200), changes since and bfloat16 emulated"
    ),
    **dict.fromkeys(
        (
            "gather_conv",
            "gather_conv_backward_input",
            "gather_conv_backward_weight",
            "inverted_bottleneck",
            "inverted_bottleneck_backward",
            "nb201_cell",
            "nb201_cell_backward",
            "norm_add",
            "norm_add_backward",
        ),
        "1c56de8 (H200), bfloat16 emulated",
    ),
}
"""Operation to the commit at which its CUDA kernel passed the tests on a GPU, and which GPU:
bench/results/gpu_h200_tests.txt."""

LEAST_DRIVER = {12: 525, 13: 580}
"""The first driver that runs what a CUDA compiler of this major version makes."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that this machine shows, and whether this build runs on it."""

    name: str
    compute_capability: str
    driver: str
    runs: bool
    reason: str
    """Why it runs, or why not."""


@dataclass(frozen=True)
class Operation:
    """An operation, where it has kernels and what is known of them."""

    name: str
    kernels: Mapping[str, str]
    """Device to what its kernel is verified on. Empty: it is for a GPU, and there is no CUDA."""


@dataclass(frozen=True)
class BuildInfo:
    """What `python -m cwkernels` prints; `str()` of it is that text."""

    version: str
    commit: str
    """Of the sources that the extension was built from, "-dirty" where they were changed."""
    compiler: str
    cpu_isas_built: tuple[str, ...]
    cuda_archs: tuple[str, ...]
    """Compute capabilities without the dot, the last one also as PTX; empty without CUDA."""
    cuda_archs_why: str
    nvcc: str
    """Its version; empty without CUDA."""
    cuda_why: str
    """How nvcc was found, or why there are no CUDA kernels."""
    torch_built: str
    torch: str
    cpu_isas: tuple[str, ...]
    """What this machine runs of the instruction sets that were built."""
    cpu_isa: str
    """The one in force."""
    threads: int
    gpus: tuple[Gpu, ...]
    gpus_why: str
    """Where the list of GPUs is from, or why it is empty."""
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        """Lines of text."""
        return "\n".join(_lines(self))


def build_info() -> BuildInfo:
    """What was built, for which architectures, what this machine runs, what is verified on what.

    Raises:
        ImportError: if the extension is missing or does not fit; it says why.
    """
    config = _library.build_config()
    archs = _names(config["cuda_archs"])
    gpus, gpus_why = _visible_gpus(archs, config["nvcc"])
    return BuildInfo(
        version=__version__,
        commit=config["commit"],
        compiler=config["compiler"],
        cpu_isas_built=_names(config["cpu_isas"]),
        cuda_archs=archs,
        cuda_archs_why=config["cuda_archs_why"],
        nvcc=config["nvcc"],
        cuda_why=config["cuda_why"],
        torch_built=config["torch"],
        torch=torch.__version__,
        cpu_isas=_names(torch.ops.cwkernels.cpu_isas()),
        cpu_isa=torch.ops.cwkernels.cpu_isa(),
        threads=torch.get_num_threads(),
        gpus=gpus,
        gpus_why=gpus_why,
        operations=tuple(_operations()),
    )


def gpu_fit(
    compute_capability: str, driver: str, archs: tuple[str, ...], nvcc: str, torch_cuda: str | None
) -> tuple[bool, str]:
    """Whether CUDA kernels for `archs`, made by `nvcc`, run on a GPU, and why or why not.

    Args:
        compute_capability: the GPU's, such as "9.0".
        driver: its driver's version.
        archs: what was built, as in `BuildInfo.cuda_archs`.
        nvcc: the version of the compiler.
        torch_cuda: `torch.version.cuda`.
    """
    if not archs:
        return False, "this build has no CUDA kernels"
    if torch_cuda is None:
        return False, f"torch {torch.__version__} is built without CUDA"
    major = int(nvcc.split(".")[0])
    least = LEAST_DRIVER.get(major, max(LEAST_DRIVER.values()))
    if int(driver.split(".")[0]) < least:
        return False, f"CUDA {major} needs driver {least} or newer"
    capability = int(compute_capability.replace(".", ""))
    built = [int(arch) for arch in archs]
    same_major = [arch for arch in built if arch // 10 == capability // 10 and arch <= capability]
    if same_major:
        return True, f"by its code for sm_{max(same_major)}"
    if built[-1] <= capability:
        return True, f"by its PTX for compute_{built[-1]}, compiled at the first call"
    return False, f"there is no code for it: built for {', '.join(archs)}"


def _names(joined: str) -> tuple[str, ...]:
    return tuple(filter(None, joined.split(",")))


def _visible_gpus(archs: tuple[str, ...], nvcc: str) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs of nvidia-smi, which sees them under a torch without CUDA too."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        rows = subprocess.check_output(query, text=True, stderr=subprocess.STDOUT, timeout=60)
    except FileNotFoundError:
        return (), "none: there is no nvidia-smi"
    except (OSError, subprocess.SubprocessError) as error:
        return (), f"unknown: {error}"
    fields = [[field.strip() for field in row.split(",")] for row in rows.strip().splitlines()]
    gpus = tuple(
        Gpu(name, capability, driver, *gpu_fit(capability, driver, archs, nvcc, torch.version.cuda))
        for name, capability, driver in (row for row in fields if len(row) == 3)
    )
    return gpus, "of nvidia-smi" if gpus else f"none: nvidia-smi says: {rows.strip()}"


def _operations() -> Iterator[Operation]:
    """The operations on tensors, by name."""
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    for name in sorted(name for name in names if name.startswith("cwkernels::")):
        short = name.removeprefix("cwkernels::")
        schema = getattr(torch.ops.cwkernels, short).default._schema
        if any("Tensor" in str(argument.type) for argument in schema.arguments):
            yield Operation(short, dict(_kernels(short)))


def _kernels(name: str) -> Iterator[tuple[str, str]]:
    gpu = GPU_VERIFIED.get(name)
    status = {
        "CPU": "tested",
        "CUDA": f"GPU-verified at commit {gpu}" if gpu else "emulated, never run on a GPU",
    }
    for key, verified in status.items():
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"cwkernels::{name}", key):
            yield key, verified


def _lines(info: BuildInfo) -> Iterator[str]:
    yield f"cwkernels {info.version}, commit {info.commit}"
    yield f"  built by       {info.compiler}, against torch {info.torch_built}"
    yield f"  CPU kernels    {', '.join(info.cpu_isas_built)}"
    if info.cuda_archs:
        archs = f"{', '.join(info.cuda_archs)} and PTX ({info.cuda_archs_why})"
        yield f"  CUDA kernels   yes, for {archs}, by nvcc {info.nvcc} ({info.cuda_why})"
    else:
        yield f"  CUDA kernels   no: {info.cuda_why}"
    yield "this machine"
    yield f"  torch          {info.torch}, {info.threads} threads"
    yield f"  CPU            runs {', '.join(info.cpu_isas)}; in force: {info.cpu_isa}"
    if not info.gpus:
        yield f"  GPU            {info.gpus_why}"
    for gpu in info.gpus:
        runs = "runs the CUDA kernels" if gpu.runs else "does not run CUDA kernels"
        what = f"{gpu.name}, compute capability {gpu.compute_capability}, driver {gpu.driver}"
        yield f"  GPU            {what}: {runs}: {gpu.reason}"
    yield "operations"
    width = max(len(operation.name) for operation in info.operations)
    for operation in info.operations:
        kernels = [f"{device}: {verified}" for device, verified in operation.kernels.items()]
        yield f"  {operation.name:{width}}  {'; '.join(kernels) or 'none: it is for a GPU'}"
