"""The least time of a step and of a scoring pass on a GPU, by counting: `python -m bench.floor`.

A kernel takes the longest of what its bytes take in HBM, what they take in L2, what its matrix
products take and what its other products take, and a launch. It is a model, not a measurement: no
GPU is asked, and every run prints the same. `bench/launches*.py` say which kernels there are.
"""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor

from bench import launches_macro, launches_nb201
from bench.contestants import space_of
from bench.launches import ACTIVATION_BYTES, Launch, Plan

LAUNCH_SECONDS = 1e-6
ARCHITECTURES = 256
"""Random ones of a fixed seed, over which a network's times are a mean."""
SEED = 0
BATCHES = (64, 256)
NETWORKS = ("full", "no_zero", "only_conv", "macro")
TITLES = {"full": "full", "no_zero": "no Zero", "only_conv": "only convolutions", "macro": "Macro"}
FIRST_MODEL: Mapping[tuple[str, str], float] = {
    ("full", "tf32"): 0.44,
    ("full", "bf16"): 0.24,
    ("only_conv", "tf32"): 0.79,
    ("only_conv", "bf16"): 0.41,
    ("macro", "tf32"): 1.15,
    ("macro", "bf16"): 0.60,
}
"""Milliseconds of a step at batch 256 on an H100, by a model made before there were kernels."""


@dataclass(frozen=True)
class Card:
    """What a GPU is taken to reach, below its data sheet.

    Attributes:
        memory: bytes a second of HBM.
        cache: bytes a second of L2, for all that a kernel reads and writes.
        cached: bytes that L2 holds from one kernel to the next.
        matrix: operations a second of matrix units by type, through mma.sync.
        other: operations a second of float32 units.
    """

    memory: float
    cache: float
    cached: int
    matrix: Mapping[str, float]
    other: float


CARDS: Mapping[str, Card] = {
    "H100": Card(3.0e12, 5.5e12, 30 * 2**20, {"tf32": 240e12, "bf16": 480e12}, 30e12),
    # The same parts of its data sheet in memory; L2 and float32 units by processors times clock;
    # 0.8 of the matrix units, which mma.sync has to itself there.
    "A100": Card(1.8e12, 3.6e12, 24 * 2**20, {"tf32": 125e12, "bf16": 250e12}, 9e12),
}


def step(network: str, architecture: Tensor, batch: int, dtype: str) -> list[Launch]:
    """The kernels of one training step: batch, forward, loss, backward, optimizer."""
    return _launches(network, architecture, batch, dtype, training=True)


def scoring_pass(network: str, architecture: Tensor, batch: int, dtype: str) -> list[Launch]:
    """The kernels of one forward pass in evaluation."""
    return _launches(network, architecture, batch, dtype, training=False)


def seconds(launches: Sequence[Launch], card: Card, dtype: str) -> float:
    """The least time of these kernels, one after another."""
    return sum(seconds_of_each(launches, card, dtype))


def seconds_of_each(launches: Sequence[Launch], card: Card, dtype: str) -> list[float]:
    """The least time of each."""
    cache = _Cache(card.cached)
    return [
        LAUNCH_SECONDS
        + max(
            cache.from_memory(launch) / card.memory,
            launch.bytes / card.cache,
            launch.matrix / card.matrix[dtype],
            launch.depthwise / card.other,
        )
        for launch in launches
    ]


def fused(launches: Sequence[Launch]) -> list[Launch]:
    """What the kernels would be if what can ride along did: its products, and no bytes to read."""
    kept: list[Launch] = []
    for launch in launches:
        if not launch.rides:
            kept.append(launch)
            continue
        before = kept[-1]
        kept[-1] = replace(
            before,
            writes=(*before.writes, *launch.writes),
            matrix=before.matrix + launch.matrix,
            depthwise=before.depthwise + launch.depthwise,
        )
    return kept


class _Cache:
    """Whole tensors in L2, the least recently used one goes first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: OrderedDict[str, int] = OrderedDict()
        self.size = 0

    def from_memory(self, launch: Launch) -> int:
        """Bytes between HBM and L2: reads of what L2 has not, and all writes, now or later."""
        missed = sum(value.bytes for value in launch.reads if value.name not in self.held)
        written = sum(value.bytes for value in launch.writes)
        for value in (*launch.reads, *launch.writes):
            self.size += value.bytes - self.held.pop(value.name, 0)
            self.held[value.name] = value.bytes
        while self.size > self.capacity:
            self.size -= self.held.popitem(last=False)[1]
        return missed + written


@dataclass(frozen=True)
class Floor:
    """Means over architectures, for one network, batch and type.

    Attributes:
        step: seconds of a step by card.
        fused: the same of a step whose kernels are `fused`.
        scoring: of a scoring pass.
        launches: kernels of a step, and the most of any architecture.
        megabytes: that a step reads and writes.
    """

    network: str
    batch: int
    dtype: str
    step: Mapping[str, float]
    fused: Mapping[str, float]
    scoring: Mapping[str, float]
    launches: float
    most_launches: int
    megabytes: float


def floor_of(network: str, batch: int, dtype: str, architectures: Tensor) -> Floor:
    """The floor of a network."""
    steps = [step(network, arch, batch, dtype) for arch in architectures]
    riding = [fused(launches) for launches in steps]
    passes = [scoring_pass(network, arch, batch, dtype) for arch in architectures]
    counts = [len(launches) for launches in steps]
    return Floor(
        network,
        batch,
        dtype,
        {n: fmean(seconds(s, card, dtype) for s in steps) for n, card in CARDS.items()},
        {n: fmean(seconds(s, card, dtype) for s in riding) for n, card in CARDS.items()},
        {n: fmean(seconds(s, card, dtype) for s in passes) for n, card in CARDS.items()},
        fmean(counts),
        max(counts),
        fmean(sum(launch.bytes for launch in launches) for launches in steps) / 1e6,
    )


def floors(architectures: int = ARCHITECTURES) -> list[Floor]:
    """Of every network, batch and type."""
    return [
        floor_of(network, batch, dtype, drawn)
        for network in NETWORKS
        for drawn in [architectures_of(network, architectures)]
        for batch in BATCHES
        for dtype in ACTIVATION_BYTES
    ]


def architectures_of(network: str, count: int) -> Tensor:
    """All architectures of a small space, else random ones of a fixed seed."""
    space = space_of(network)
    if len(space) <= count:
        return space.all()
    return space.sample(count, generator=torch.Generator().manual_seed(SEED))


HEADER = (
    "network",
    "batch",
    "type",
    "step, H100",
    "fused",
    "first model",
    "step, A100",
    "scoring, H100",
    "scoring, A100",
    "kernels of a step: mean, most",
    "MB of a step",
)


def row(floor: Floor) -> list[str]:
    """A line of the table."""
    first = FIRST_MODEL.get((floor.network, floor.dtype)) if floor.batch == max(BATCHES) else None
    return [
        TITLES[floor.network],
        str(floor.batch),
        floor.dtype,
        f"{1e3 * floor.step['H100']:.3f} ms",
        f"{1e3 * floor.fused['H100']:.3f} ms",
        f"{first:.2f} ms" if first is not None else "",
        f"{1e3 * floor.step['A100']:.3f} ms",
        f"{1e3 * floor.scoring['H100']:.3f} ms",
        f"{1e3 * floor.scoring['A100']:.3f} ms",
        f"{floor.launches:.0f}, {floor.most_launches}",
        f"{floor.megabytes:.0f}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.floor")
    parser.add_argument(
        "--architectures", type=int, default=ARCHITECTURES, help=f"of each ({ARCHITECTURES})"
    )
    options = parser.parse_args(arguments)
    lines = [list(HEADER), *map(row, floors(options.architectures))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))
    return 0


def _launches(
    network: str, architecture: Tensor, batch: int, dtype: str, *, training: bool
) -> list[Launch]:
    decisions = space_of(network).decisions
    codes = tuple(
        decision.candidates[choice].code
        for decision, choice in zip(decisions, architecture.tolist(), strict=True)
    )
    plan = Plan(dtype)
    builder = launches_macro.network if network == "macro" else launches_nb201.network
    builder(plan, codes, batch, training=training)
    return plan.launches


if __name__ == "__main__":
    sys.exit(main())
