"""How a trainer's batches are trained: what `Trainer` takes as `make_step`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from cwkernels.training.graphed import GraphedStep
from cwkernels.training.step import EagerStep, Step

if TYPE_CHECKING:
    from cwkernels.training.trainer import Trainer


def eager_step(trainer: "Trainer") -> EagerStep:
    """By ordinary calls, with the architectures known to the host."""
    return EagerStep(trainer.net, trainer.optimizer, trainer.batches)


def graphed_step(trainer: "Trainer") -> GraphedStep:
    """In one CUDA graph, with the architectures on the device: the same bits, at one launch.

    A network without reserve is captured again after each split.
    """
    batches, count = trainer.batches, trainer.recipe.architectures
    return GraphedStep(
        trainer.net,
        trainer.optimizer,
        batches.images,
        batches.labels,
        batch_size=batches.batch_size,
        architectures=count if count > 1 else None,
    )


def step_of_device(trainer: "Trainer") -> Step:
    """In a graph on a GPU, by ordinary calls elsewhere."""
    return graphed_step(trainer) if trainer.batches.device.type == "cuda" else eager_step(trainer)


MAKE_STEP: Mapping[bool | None, Callable[["Trainer"], Step]] = MappingProxyType(
    {None: step_of_device, True: graphed_step, False: eager_step}
)
"""By `graphed` of a run's settings."""
