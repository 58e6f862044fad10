"""Trainer by GraphedStep beside the eager step: the same bits, and a run that is cut goes on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_cases import NAMED, TINY, assert_same_run, tiny_data

from cwkernels.data import Batches, Cifar10
from cwkernels.training import (
    Callback,
    Config,
    EagerStep,
    EpochRecord,
    GraphedStep,
    Recipe,
    Run,
    RunConfig,
    Split,
    Step,
    Trainer,
    create_run,
    eager_step,
    graphed_step,
    load_run,
    make_step,
)
from cwkernels.training.graphed import WARM_UP

OPERATION = "select"
pytestmark = pytest.mark.usefixtures("one_thread")
on_gpu = pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)
RESERVED = replace(TINY, reserve=True)


def batches(device: torch.device) -> Batches:
    """Two batches of 2 images of 8 by 8 pixels, and 2 images that validate."""
    data = tiny_data(10)
    images, labels = data.train_images[:6, :, :8, :8].contiguous(), data.train_labels[:6]
    small = Cifar10(images, labels, data.test_images, data.test_labels, "generated")
    return Batches(small, seed=3, batch_size=2, validation=2, device=device)


def recipe(name: str, device: torch.device) -> Recipe:
    """A split in the middle; on CUDA the graph is captured before it."""
    half = 1 if device.type == "cpu" else WARM_UP
    return replace(NAMED[name], epochs=2 * half, splits=(Split(half),), ema_decay=0.9)


class Kept(Callback):
    """What the epochs measured, without what the clock and the system say."""

    def __init__(self) -> None:
        self.records: list[EpochRecord] = []

    def on_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        self.records.append(replace(record, seconds=0.0, peak_memory_bytes=0))


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, statistics, averages, and the momenta of what was trained."""
    assert trainer.average is not None
    state = dict(trainer.net.state_dict()) | trainer.average.state_dict(prefix="average.")
    for name, parameter in trainer.net.named_parameters():
        if (own := trainer.optimizer.state.get(parameter)) and own["momentum_buffer"].any():
            state[f"momentum.{name}"] = own["momentum_buffer"]
    return state


@on_gpu
@pytest.mark.parametrize("name", NAMED)
def test_trains_as_the_eager_step_does(name: str, device: torch.device) -> None:
    """Both recipes: "paper" coasts, shares momenta, and exchanges sets at their first use."""
    trainers, watches = [], [Kept(), Kept()]
    ways: tuple[Callable[[Trainer], Step], ...] = (eager_step, graphed_step)
    for way, watch in zip(ways, watches, strict=True):
        torch.manual_seed(0)
        net = RESERVED.build().to(device)
        own = recipe(name, device)
        trainer = Trainer(net, batches(device), own, callbacks=[watch], make_step=way)
        trainer.fit()
        trainers.append(trainer)
    eager, graphed = map(state_of, trainers)
    assert graphed.keys() == eager.keys()
    for key, tensor in eager.items():
        assert torch.equal(graphed[key], tensor), key
    assert watches[0].records == watches[1].records
    step = trainers[1]._train
    assert isinstance(step, GraphedStep)
    assert step.captures == (device.type == "cuda")


class Cut(Callback):
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            raise KeyboardInterrupt


def go_on(path: Path, device: torch.device, callbacks: Sequence[Callback] = ()) -> None:
    load_run(path).trainer(callbacks, batches=batches(device)).fit()


@on_gpu
@pytest.mark.parametrize("name", NAMED)
def test_a_run_that_is_cut_goes_on_bitwise(name: str, device: torch.device, tmp_path: Path) -> None:
    """Between a checkpoint and the next, in the epoch behind the split."""
    own = recipe(name, device)
    settings = RunConfig(
        seed=3, device=str(device), threads=1, checkpoint_seconds=1e9, graphed=True
    )
    whole, path = tmp_path / "whole", tmp_path / "run"
    for run in (whole, path):
        create_run(run, Config(RESERVED, recipe=own, run=settings))
    go_on(whole, device)
    with pytest.raises(KeyboardInterrupt):
        go_on(path, device, [Cut(own.epochs + 1)])
    go_on(path, device)
    assert_same_run(path, whole)


@pytest.mark.parametrize(
    ("graphed", "step"), [(None, EagerStep), (False, EagerStep), (True, GraphedStep)]
)
def test_a_run_says_how_its_steps_run(
    graphed: bool | None, step: type[Step], tmp_path: Path
) -> None:
    run = Run(tmp_path, Config(RESERVED, run=RunConfig(threads=1, graphed=graphed)))
    assert type(run.trainer(batches=batches(torch.device("cpu")))._train) is step


@pytest.mark.parametrize(("device", "made"), [("cpu", "eager_step"), ("cuda", "graphed_step")])
def test_by_default_the_device_says_it(
    device: str, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("eager_step", "graphed_step"):
        monkeypatch.setattr(make_step, name, lambda trainer, name=name: name)
    trainer: Any = SimpleNamespace(batches=SimpleNamespace(device=torch.device(device)))
    result: Any = make_step.step_of_device(trainer)
    assert result == made
