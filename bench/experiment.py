"""What `bench/overhead.py` measures of one network, and what follows from it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import cwkernels as cw
from bench import memory
from bench.contestants import (
    CONTESTANTS,
    Contestant,
    build,
    every_choice,
    heaviest_architecture,
    space_of,
)
from bench.harness import Action, Interval, Samples, interleave, progress_bar
from bench.memory import MemoryUse

TRAINING_IMAGES = 45_000
SEED = 0
MIN_ARCHITECTURES = 2
MAX_ARCHITECTURES = 8
MIN_ROUNDS = 2
MAX_ROUNDS = 40
SECONDS_PER_NETWORK = 38.0
"""Four networks, data and start-up stay below three minutes on two cores."""


@dataclass(frozen=True)
class Batch:
    """Augmented training images, channels-last, and their labels."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class NetworkResult:
    """Timings and memory of every contestant on one network."""

    batch: int
    architectures: tuple[tuple[int, ...], ...]
    samples: Samples
    memory: Mapping[str, MemoryUse]

    @property
    def steps_per_epoch(self) -> int:
        """The last, smaller batch is dropped."""
        return TRAINING_IMAGES // self.batch

    @property
    def num_steps(self) -> int:
        """How many timed steps each contestant made."""
        return self.samples.num_cases * self.samples.num_rounds

    def step_seconds(self, contestant: str) -> Interval:
        """The mean over the architectures of the median step, with its spread."""
        return self.samples.mean(contestant)

    def step_ratio(self, contestant: str, base: str) -> Interval:
        """How many times `base`'s step `contestant`'s step takes, with its spread."""
        return self.samples.ratio(contestant, base)

    def baseline_seconds(self, contestant: str, epochs: int) -> float:
        """The estimate for a training that never splits."""
        before = self.samples.mean_of_medians(contestant) * self.steps_per_epoch
        return training_seconds(epochs, epochs, before, before)

    def time_overhead(self, contestant: str, split_epoch: int, epochs: int) -> float:
        """Percent more time than the baseline when split at this epoch."""
        before = self.samples.mean_of_medians(contestant)
        after = self.samples.mean_of_medians(f"{contestant}_split")
        baseline = training_seconds(epochs, epochs, before, after)
        return 100 * (training_seconds(epochs, split_epoch, before, after) / baseline - 1)

    def memory_overhead(self, contestant: str) -> float:
        """Percent more memory than the baseline at the peak, which is after the split."""
        split, baseline = self.memory[f"{contestant}_split"], self.memory[contestant]
        return 100 * (split.peak / baseline.peak - 1)


def training_seconds(epochs: int, split_epoch: int, before: float, after: float) -> float:
    """T(e) = e·t₀ + (E − e)·t₁: E epochs, of which e take t₀ and the others t₁ seconds each."""
    return split_epoch * before + (epochs - split_epoch) * after


def load_batches(batch: int, device: torch.device) -> tuple[list[Batch], str]:
    """A batch of augmented training images for each architecture, and what they come from."""
    data = cw.data.load_cifar10()
    generator = torch.Generator().manual_seed(SEED)
    order, _ = cw.data.training_validation_indices(
        len(data.train_images), len(data.train_images) - TRAINING_IMAGES, SEED
    )
    batches = []
    for i in range(MAX_ARCHITECTURES):
        # A batch of more than the images allow starts over.
        indices = order[torch.arange(i * batch, (i + 1) * batch) % len(order)]
        augmentation = cw.data.draw_augmentation(batch, generator)
        images = cw.data.make_batch(data.train_images, indices, augmentation)
        batches.append(Batch(images.to(device), data.train_labels[indices].long().to(device)))
    return batches, data.source


def run_network(
    network: str,
    batches: list[Batch],
    *,
    steps: int | None,
    with_processes: bool,
    description: str | None = None,
) -> NetworkResult:
    """Measure memory, then time, of every contestant on one network.

    Args:
        network: one of `NETWORKS`.
        batches: one for each architecture.
        steps: timed steps of each contestant, or None for as many as `SECONDS_PER_NETWORK` allows.
        with_processes: also run a fresh process for each contestant's VmHWM.
        description: label of the progress bar.
    """
    start = time.perf_counter()
    device = batches[0].images.device
    torch.manual_seed(SEED)
    contestants = {name: build(name, network, device) for name in CONTESTANTS}
    used = _measure_memory(network, contestants, batches[0], description)
    spent = time.perf_counter() - start
    rounds: int | Callable[[float], int]
    if steps is None:
        left = SECONDS_PER_NETWORK - spent
        turn = spent / memory.steps_of_measure(every_choice(network))
        count, rounds = architectures_within(left, turn), rounds_within(left)
    else:
        count = min(MAX_ARCHITECTURES, max(1, steps // MIN_ROUNDS))
        rounds = max(MIN_ROUNDS, math.ceil(steps / count))
    generator = torch.Generator().manual_seed(SEED)
    architectures = space_of(network).sample(count, generator=generator)
    samples = interleave(
        [
            _actions(contestants, batches[i], architecture)
            for i, architecture in enumerate(architectures)
        ],
        rounds=rounds,
        device=device,
        description=description,
    )
    batch = len(batches[0].labels)
    if with_processes:
        used = {
            name: replace(use, process=memory.process_bytes(network, name, batch))
            for name, use in used.items()
        }
    choices = tuple(tuple(architecture) for architecture in architectures.tolist())
    return NetworkResult(batch, choices, samples, used)


def _measure_memory(
    network: str, contestants: Mapping[str, Contestant], batch: Batch, description: str | None
) -> dict[str, MemoryUse]:
    """Every contestant's memory under the heaviest architecture."""
    used = {}
    with progress_bar(len(contestants), description, "memory") as advance:
        for name, contestant in contestants.items():
            used[name] = memory.measure(
                contestant,
                batch.images,
                batch.labels,
                heaviest_architecture(network),
                every_choice(network),
            )
            advance()
    return used


def _actions(
    contestants: Mapping[str, Contestant], batch: Batch, architecture: Tensor
) -> dict[str, Action]:
    """One step of each contestant on this batch, with the images laid out as each wants them."""

    def action(contestant: Contestant) -> Action:
        images = batch.images.contiguous(memory_format=contestant.memory_format)
        return lambda: contestant.step(images, batch.labels, architecture)

    return {name: action(contestant) for name, contestant in contestants.items()}


def architectures_within(seconds: float, turn: float) -> int:
    """How many architectures leave time for a warm-up and the fewest rounds.

    Args:
        seconds: the time for all that.
        turn: what one step of every contestant takes together.
    """
    fitting = int(seconds / (turn * (1 + MIN_ROUNDS)))
    return min(MAX_ARCHITECTURES, max(MIN_ARCHITECTURES, fitting))


def rounds_within(seconds: float) -> Callable[[float], int]:
    """How many rounds fit beside the warm-up, which takes as long as a round."""

    def rounds(warm_up: float) -> int:
        fitting = int((seconds - warm_up) / warm_up)
        return min(MAX_ROUNDS, max(MIN_ROUNDS, fitting - fitting % 2))

    return rounds
