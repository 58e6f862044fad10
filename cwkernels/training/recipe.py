"""Recipes: how a super-network is trained, every difference a switch of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from cwkernels.optim import MomentumBuffers, Unselected
from cwkernels.ranking.options import Recalibration
from cwkernels.training.samplers import SamplerName

NewSets = Literal["at_split", "on_first_use"]


@dataclass(frozen=True)
class Split:
    """When decisions get their weight sets.

    Attributes:
        epoch: how many epochs are done by then; at least 0.
        decisions: which (the paper's path 1 is decision 0); None for all.

    Raises:
        ValueError: for a negative epoch.
    """

    epoch: int
    decisions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Checks."""
        if self.epoch < 0:
            raise _fault("splits", "epochs of at least 0", self.epoch)


@dataclass(frozen=True)
class Recipe:
    """What training does to a network (paper, table 4). The defaults are the recipe ``default``.

    Attributes:
        epochs: of the schedule: the learning rate reaches its end after them.
        stop_epoch: stop once so many are done, on the same schedule (figure 6); None: all.
        splits: which decisions get weight sets, and when.
        lr, final_lr: the learning rate falls from one to the other by a cosine, step by step.
        momentum, weight_decay: of SGD; batch norms do not decay.
        sampler: "uniform", "strict_fair" or "balanced": see `cw.training.samplers`.
        architectures: A, how many architectures a batch trains. The loss is the mean over images,
            summed over architectures.
        ema_decay: of an average of the weights, kept beside them; 0 for none.
        validate_every: epochs between validations.
        unselected: "untouched": weight sets that a batch did not select stay bitwise as they are;
            "zero_grad": they take a zero gradient, so that candidates once used keep decaying and
            coasting (the authors' code).
        momentum_buffers: "per_set", or "per_candidate" (the authors' code).
        new_sets: "at_split": a set starts as what the split copied; "on_first_use": a combination
            that is met for the first time after the split copies what its edge or layer used last,
            all candidates together (the authors' code).
        recalibration: how `cw.ranking` re-estimates batch norms of this run: "reset" (exact average
            from nothing), "running" (goes on from the stored ones with momentum 0.1 on augmented
            images: the authors' code), "batch" (batch statistics in their place) or "none".

    Raises:
        ValueError: for a number out of range or an unknown choice.
    """

    epochs: int = 250
    stop_epoch: int | None = None
    splits: tuple[Split, ...] = ()
    lr: float = 0.025
    final_lr: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 3e-4
    sampler: SamplerName = "uniform"
    architectures: int = 1
    ema_decay: float = 0.0
    validate_every: int = 1
    unselected: Unselected = "untouched"
    momentum_buffers: MomentumBuffers = "per_set"
    new_sets: NewSets = "at_split"
    recalibration: Recalibration = "reset"

    def __post_init__(self) -> None:
        """Checks what the optimizer does not."""
        for name in ("epochs", "architectures", "validate_every"):
            if getattr(self, name) < 1:
                raise _fault(name, "at least 1", getattr(self, name))
        if self.stop_epoch is not None and not 1 <= self.stop_epoch <= self.epochs:
            raise _fault("stop_epoch", f"1 … {self.epochs}, the epochs", self.stop_epoch)
        if not 0 <= self.final_lr <= self.lr:
            raise _fault("final_lr", f"0 … {self.lr}, the learning rate", self.final_lr)
        if not 0 <= self.ema_decay < 1:
            raise _fault("ema_decay", "a number in [0, 1)", self.ema_decay)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _fault(name, " or ".join(map(repr, choices)), repr(getattr(self, name)))

    @property
    def last_epoch(self) -> int:
        """How many epochs are trained."""
        return self.epochs if self.stop_epoch is None else self.stop_epoch


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "sampler": get_args(SamplerName),
    "unselected": get_args(Unselected),
    "momentum_buffers": get_args(MomentumBuffers),
    "new_sets": get_args(NewSets),
    "recalibration": get_args(Recalibration),
}

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "default": Recipe(),
        "paper": Recipe(
            unselected="zero_grad",
            momentum_buffers="per_candidate",
            new_sets="on_first_use",
            recalibration="running",
        ),
    }
)
"""The two recipes of docs/method.md by name; `dataclasses.replace` makes others of them."""


def _fault(argument: str, wanted: str, got: object) -> ValueError:
    return ValueError(f"Recipe: {argument}: wanted {wanted}, got {got}")
