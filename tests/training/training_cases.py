"""Tiny runs that the tests of training share."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cwkernels.data import Batches, Cifar10, generate_cifar10
from cwkernels.training import (
    RECIPES,
    Callback,
    Config,
    DataConfig,
    EpochRecord,
    NetworkConfig,
    Recipe,
    RunConfig,
    Split,
    load_run,
)
from cwkernels.training.checkpoint import newest_checkpoint
from cwkernels.training.run import CHECKPOINTS

STEPS = 3
"""Of an epoch."""

TINY = NetworkConfig(channels=4, cells_per_stage=1)
RECIPE = Recipe(epochs=4, splits=(Split(1, (2, 4)), Split(2)), lr=0.05)
PAPER = replace(
    RECIPES["paper"], epochs=4, splits=(Split(2),), lr=0.05, ema_decay=0.9, architectures=2
)
NAMED = {"default": RECIPE, "paper": PAPER}


def tiny_data(images: int = 40) -> Cifar10:
    """Generated images, 12 by 12 pixels: enough for every stage."""
    data = generate_cifar10(images, 8)
    small = data.train_images[..., 10:22, 10:22].contiguous()
    return Cifar10(small, data.train_labels, data.test_images, data.test_labels, "generated")


def tiny_batches(seed: int = 0) -> Batches:
    """Three batches of 8 images and 10 images that validate."""
    return Batches(tiny_data(), seed=seed, batch_size=8, validation=10)


def tiny_config(recipe: Recipe, checkpoint_seconds: float = 0.0) -> Config:
    """A run of it; by default with a checkpoint after every step."""
    return Config(
        TINY,
        DataConfig(validation=10, batch_size=8),
        recipe,
        RunConfig(seed=3, threads=1, checkpoint_seconds=checkpoint_seconds),
    )


def finish(path: Path, *callbacks: Callback) -> None:
    """Goes on with a run until its end, as `cwkernels train` does, on tiny images."""
    run = load_run(path)
    run.trainer(callbacks, batches=tiny_batches(run.config.run.seed)).fit()


def final_state(path: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint."""
    found = newest_checkpoint(path / CHECKPOINTS)
    assert found is not None
    return dict(found[1].tensors)


def metrics_of(path: Path) -> list[EpochRecord]:
    """The records without what the clock and the system say."""
    return [replace(own, seconds=0.0, peak_memory_bytes=0) for own in load_run(path).metrics()]


def assert_same_run(path: Path, other: Path) -> None:
    """Bitwise, in every tensor and every record."""
    state, wanted = final_state(path), final_state(other)
    assert state.keys() == wanted.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, wanted[name]), name
    assert metrics_of(path) == metrics_of(other)
