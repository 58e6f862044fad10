"""The printed results of `bench/overhead.py`: the paper's table 1, its basis, the long form."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields

from bench.contestants import CONTESTANTS
from bench.experiment import TRAINING_IMAGES, NetworkResult
from bench.harness import Interval
from bench.memory import MemoryUse
from cwkernels.report.paper import TABLE_1

MIB = 2**20
LABEL_WIDTH = 30
COLUMNS = (("time", 10), ("paper", 8), ("memory", 10), ("paper", 8))
COLUMN_WIDTH = sum(width for _, width in COLUMNS)
GROUPS = {"ours": "cwkernels", "authors": "the authors' way"}
STOCK = ("stock_nchw", "stock_channels_last")
YARDSTICKS = (*STOCK, "authors", "authors_split", "ours_split")
MEMORY_TITLES = {
    "parameters": "params",
    "momentum": "momentum",
    "running_statistics": "running",
    "gradients": "grads",
    "inputs": "inputs",
    "saved": "saved",
    "pool": "pool",
    "workspace": "workspace",
    "peak": "peak",
    "process": "process",
}

TEXT_WIDTH = 98
_BASIS = """\
Nobody trained that long here. An epoch is {steps} steps of {batch} images ({images:,} images; the
last, smaller batch is dropped). A step takes t0 before and t1 after the split, each the mean over
the same random architectures of the median over the rounds, so a training of E epochs, split at e,
is estimated as T(e) = e·t0 + (E − e)·t1, each times the steps of an epoch. A step is forward, loss,
backward and optimizer on a ready batch of augmented images. The contestants take turns, in both
orders. Brackets: 10–90 %, by bootstrap over the rounds. Memory: the peak of a step under the
heaviest architecture, after the split with all weight sets present. The paper's batch is 256: with
fewer images, weight sets weigh more against what is saved for backward."""


def table_1(results: Mapping[str, NetworkResult]) -> str:
    """The table in the form of the paper's, one block for each benchmark."""
    blocks = []
    for benchmark in dict.fromkeys(TABLE_1[network].benchmark for network in results):
        networks = [network for network in results if TABLE_1[network].benchmark == benchmark]
        blocks.append(_block(benchmark, networks, results))
    return "\n\n".join(blocks)


def basis(results: Mapping[str, NetworkResult]) -> str:
    """What the table's times are computed from, and how they are spread."""
    first = next(iter(results.values()))
    lines = textwrap.wrap(
        _BASIS.format(images=TRAINING_IMAGES, steps=first.steps_per_epoch, batch=first.batch),
        width=TEXT_WIDTH,
    )
    for network, result in results.items():
        lines += ["", *_network_basis(network, result)]
    return "\n".join(lines)


def long_form(results: Mapping[str, NetworkResult]) -> str:
    """Every part of the memory in its own column, in MiB."""
    names = [field.name for field in fields(MemoryUse)]
    header = "".join(f"{MEMORY_TITLES[name]:>11}" for name in names)
    lines = [
        "Memory in MiB (what each column counts: bench/memory.py)",
        f"{'':{LABEL_WIDTH}}{header}",
    ]
    for network, result in results.items():
        lines.append(_title(network))
        for contestant, used in result.memory.items():
            cells = "".join(f"{_mebibytes(getattr(used, name)):>11}" for name in names)
            lines.append(f"  {CONTESTANTS[contestant]:{LABEL_WIDTH - 2}}{cells}")
    return "\n".join(lines)


def _title(network: str) -> str:
    return f"{TABLE_1[network].benchmark}, {TABLE_1[network].title}"


def _block(benchmark: str, networks: Sequence[str], results: Mapping[str, NetworkResult]) -> str:
    epochs = TABLE_1[networks[0]].epochs
    titles = "".join(f"{TABLE_1[network].title:>{COLUMN_WIDTH}}" for network in networks)
    columns = "".join(f"{name:>{width}}" for name, width in COLUMNS) * len(networks)
    lines = [
        f"{benchmark + f', {epochs} epochs':{LABEL_WIDTH}}{titles}",
        f"{'':{LABEL_WIDTH}}{columns}",
    ]
    for group, name in GROUPS.items():
        lines.append(name)
        rows: list[int | None] = [None, *TABLE_1[networks[0]].overheads]
        for split_epoch in rows:
            label = "baseline" if split_epoch is None else f"split at {split_epoch}"
            cells = "".join(
                _cells(results[network], group, network, split_epoch) for network in networks
            )
            lines.append(f"  {label:{LABEL_WIDTH - 2}}{cells}")
    lines.append("a step as a multiple of cwkernels' before the split")
    for contestant in YARDSTICKS:
        cells = "".join(_yardstick_cells(results[network], contestant) for network in networks)
        lines.append(f"  {CONTESTANTS[contestant]:{LABEL_WIDTH - 2}}{cells}")
    return "\n".join(line.rstrip() for line in lines)


def _cells(result: NetworkResult, group: str, network: str, split_epoch: int | None) -> str:
    """Time, the paper's time, memory, the paper's memory."""
    paper = TABLE_1[network]
    if split_epoch is None:
        values = (
            f"{result.baseline_seconds(group, paper.epochs):.0f} s",
            f"{paper.seconds} s",
            f"{result.memory[group].peak / MIB:.0f} MiB",
            f"{paper.megabytes} MB",
        )
    else:
        time_overhead, memory_overhead = paper.overheads[split_epoch]
        values = (
            _percent(result.time_overhead(group, split_epoch, paper.epochs)),
            _percent(time_overhead),
            _percent(result.memory_overhead(group)),
            _percent(memory_overhead),
        )
    return _aligned(values)


def _yardstick_cells(result: NetworkResult, contestant: str) -> str:
    (_, time), (_, paper), (_, memory), (_, rest) = COLUMNS
    ratio = "×" + _spread(result.step_ratio(contestant, "ours"), ".2f")
    peak = f"{result.memory[contestant].peak / MIB:.0f} MiB"
    return f"{ratio:>{time + paper}}{peak:>{memory}}{'':{rest}}"


def _aligned(values: Sequence[str]) -> str:
    return "".join(f"{value:>{width}}" for value, (_, width) in zip(values, COLUMNS, strict=True))


def _network_basis(network: str, result: NetworkResult) -> list[str]:
    cases, rounds = result.samples.num_cases, result.samples.num_rounds
    lines = [
        f"{_title(network)}: {result.num_steps} timed steps of each contestant, "
        f"{cases} architecture{'s' * (cases != 1)} × {rounds} round{'s' * (rounds != 1)}"
    ]
    for group, name in GROUPS.items():
        before, after = result.step_seconds(group), result.step_seconds(f"{group}_split")
        ratio = result.step_ratio(f"{group}_split", group)
        lines.append(
            f"  {name:{LABEL_WIDTH - 2}} t0 {_milliseconds(before)}   t1 {_milliseconds(after)}   "
            f"t1/t0 {_spread(ratio, '.3f')}"
        )
    lines += [
        f"  {CONTESTANTS[name]:{LABEL_WIDTH - 2}} t  {_milliseconds(result.step_seconds(name))}"
        for name in STOCK
    ]
    return lines


def _milliseconds(seconds: Interval) -> str:
    scaled = Interval(1000 * seconds.value, 1000 * seconds.low, 1000 * seconds.high)
    return _spread(scaled, ".1f", " ms")


def _spread(interval: Interval, form: str, unit: str = "") -> str:
    return f"{interval.value:{form}}{unit} [{interval.low:{form}}–{interval.high:{form}}]"


def _percent(value: float) -> str:
    return f"{value:+.1f} %"


def _mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / MIB:.2f}"
