"""What a run does when, as functions of the step or the epoch alone: a resume computes the same."""

from collections.abc import Iterable
from math import cos, pi

from cwkernels.training.recipe import Split


def cosine(step: int, steps: int, lr: float, final_lr: float) -> float:
    """The learning rate of a step: from ``lr`` at step 0 by half a cosine towards ``final_lr``.

    Equivalent to the closed form of `torch.optim.lr_scheduler.CosineAnnealingLR` with
    ``T_max=steps``, which itself goes from step to step and rounds on its way.

    Args:
        step: counts from 0 over the whole run.
        steps: of the whole schedule; ``final_lr`` is that of the step behind the last.
    """
    return final_lr + (lr - final_lr) * (1 + cos(pi * step / steps)) / 2


def due(splits: Iterable[Split], epoch: int) -> list[Split]:
    """The splits that belong before an epoch (counted from 0), in their order."""
    return [split for split in splits if split.epoch == epoch]
