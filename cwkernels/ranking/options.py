"""How architectures are scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Recalibration = Literal["reset", "running", "batch", "none"]


@dataclass(frozen=True)
class Way:
    """What a kind of recalibration does.

    Attributes:
        passes: whether forward passes on training images come before the scoring.
        reset: whether statistics are forgotten before them.
        momentum: weight of a batch in the statistics; None for the exact average of all.
        augmented: whether these images are augmented.
        batch_statistics: whether validation batches are normalised by their own statistics.
    """

    passes: bool = False
    reset: bool = False
    momentum: float | None = None
    augmented: bool = False
    batch_statistics: bool = False


WAYS: Mapping[Recalibration, Way] = {
    "reset": Way(passes=True, reset=True),
    "running": Way(passes=True, momentum=0.1, augmented=True),
    "batch": Way(batch_statistics=True),
    "none": Way(),
}


@dataclass(frozen=True)
class RankingOptions:
    """How `cw.ranking.rank` scores.

    Attributes:
        recalibration: where an architecture's batch-norm statistics come from.

            - ``"reset"``: re-estimated on training images under evaluation transforms, as their
              exact average; nothing is left of those from training (the recipe ``default``).
            - ``"running"``: the stored ones go on with momentum 0.1 on augmented training images
              (the recipe ``paper``, the authors' code).
            - ``"batch"``: none are needed, each validation batch is normalised by its own.
            - ``"none"``: the stored ones as they are.
        batches: training batches of the re-estimate, the same for every architecture; 20 in the
            paper (appendix B).
        images: validation images, the first of them; None for all.
        chunk: how many architectures are scored together, which bounds memory: side by side in a
            batch, or as a tree of shared prefixes. None: 8 side by side, 243 in a tree.
        share_prefixes: whether a sequential network (Macro) runs what architectures have in common
            once. Scores are the same, bit for bit.

    Raises:
        ValueError: for another recalibration, or a number below 1.
    """

    recalibration: Recalibration = "reset"
    batches: int = 20
    images: int | None = None
    chunk: int | None = None
    share_prefixes: bool = True

    def __post_init__(self) -> None:
        """Checks."""
        kinds = get_args(Recalibration)
        if self.recalibration not in kinds:
            raise _fault("recalibration", f"one of {', '.join(kinds)}", self.recalibration)
        for name in ("batches", "images", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _fault(name, "at least 1", value)

    @property
    def way(self) -> Way:
        """What the recalibration does."""
        return WAYS[self.recalibration]


def _fault(argument: str, wanted: str, got: object) -> ValueError:
    return ValueError(f"RankingOptions: {argument}: wanted {wanted}, got {got}")
