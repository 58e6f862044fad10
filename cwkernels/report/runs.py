"""What reports read of a run, and which runs repeat each other with another seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cwkernels.ranking.record import read_evaluation
from cwkernels.training import EpochRecord, Recipe, load_run

EVALUATION = "evaluation.json"
BASELINE = "baseline"


@dataclass(frozen=True, order=True)
class Variant:
    """What was done to a network; runs of one network and variant differ by their seed.

    Attributes:
        epoch: of the split or of the stop, or the last one of a run that is not done; 0 for the
            baseline.
        label: as in the paper's tables.
    """

    epoch: int
    label: str

    @property
    def is_split(self) -> bool:
        """Whether weights were split."""
        return self.label.startswith("split")

    @property
    def is_stop(self) -> bool:
        """Whether training was stopped early."""
        return self.label.startswith("stop")


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        network: "macro", or "full", "no_zero" or "only_conv" of NAS-Bench-201.
        variant: what was done to it.
        epochs: of its schedule.
        seed: of it.
        metrics: an entry for each epoch.
        evaluation: the record of `cwkernels evaluate`; None if there is none.
    """

    network: str
    variant: Variant
    epochs: int
    seed: int
    metrics: tuple[EpochRecord, ...]
    evaluation: dict[str, Any] | None

    @property
    def seconds(self) -> float:
        """Of training."""
        return sum(record.seconds for record in self.metrics)

    @property
    def peak_bytes(self) -> int:
        """Of memory."""
        return max(record.peak_memory_bytes for record in self.metrics)

    def metric(self, name: str) -> float:
        """A metric of the super-network's ranking; NaN if there is none."""
        if self.evaluation is None:
            return float("nan")
        value = self.evaluation["results"]["super-network"]["metrics"][name]
        return float("nan") if value is None else float(value)


@dataclass(frozen=True)
class Group:
    """Repetitions of one network and variant with different seeds."""

    network: str
    variant: Variant
    epochs: int
    runs: tuple[RunRecord, ...]

    def mean(self, name: str) -> float:
        """A metric's mean over the runs that have one."""
        return self._over(name)[0]

    def deviation(self, name: str) -> float:
        """Its standard deviation over them; NaN of fewer than two."""
        return self._over(name)[1]

    def _over(self, name: str) -> tuple[float, float]:
        values = np.array([run.metric(name) for run in self.runs])
        values = values[np.isfinite(values)]
        mean = float(values.mean()) if len(values) else float("nan")
        return mean, float(values.std(ddof=1)) if len(values) > 1 else float("nan")

    @property
    def fraction(self) -> float:
        """When the split or the stop was, as a part of the schedule."""
        return self.variant.epoch / self.epochs


def read_run(path: Path) -> RunRecord:
    """A run from its folder.

    Raises:
        FileNotFoundError, ValueError: if there is none, no epoch of it is done, or a file of it is
            damaged.
    """
    run = load_run(path)
    metrics = tuple(run.metrics())
    if not metrics:
        raise ValueError(f"report: {path}: wanted a run with at least one epoch done, got none")
    network, recipe = run.config.network, run.config.recipe
    evaluation = path / EVALUATION
    return RunRecord(
        network="macro" if network.name == "macro" else network.subset,
        variant=_variant(recipe, metrics[-1].epoch),
        epochs=recipe.epochs,
        seed=run.config.run.seed,
        metrics=metrics,
        evaluation=read_evaluation(evaluation) if evaluation.exists() else None,
    )


def grouped(runs: Iterable[RunRecord]) -> list[Group]:
    """Groups by network, then variant, the baseline first.

    Raises:
        ValueError: for runs of one variant on schedules of different length, or rankings of one
            network that were not of as many architectures.
    """
    runs = list(runs)
    _require_comparable(runs)
    found: dict[tuple[str, Variant], list[RunRecord]] = {}
    for run in runs:
        found.setdefault((run.network, run.variant), []).append(run)
    groups = []
    for (network, variant), own in sorted(found.items()):
        lengths = sorted({run.epochs for run in own})
        if len(lengths) > 1:
            name = f"{network}, {variant.label}"
            raise ValueError(f"report: {name}: wanted runs of one length, got {lengths} epochs")
        groups.append(Group(network, variant, lengths[0], tuple(own)))
    return groups


def _require_comparable(runs: Sequence[RunRecord]) -> None:
    counts: dict[str, set[int]] = {}
    for run in runs:
        if run.evaluation is not None:
            counts.setdefault(run.network, set()).add(run.evaluation["architectures"])
    for network, own in counts.items():
        if len(own) > 1:
            wanted = "rankings of the same architectures"
            raise ValueError(f"report: {network}: wanted {wanted}, got {sorted(own)} of them")


def baseline_of(groups: Sequence[Group], network: str) -> Group | None:
    """The baseline of a network, if there is one."""
    own = (g for g in groups if g.network == network and g.variant.label == BASELINE)
    return next(own, None)


def _variant(recipe: Recipe, done: int) -> Variant:
    """The label says all: which decisions were split if not all of them, and every epoch."""
    splits, stop = recipe.splits, recipe.stop_epoch
    if done < recipe.last_epoch:
        return Variant(done, f"unfinished, {done} of {recipe.last_epoch} epochs")
    if stop is None and not splits:
        return Variant(0, BASELINE)
    parts = [
        f"split at {split.epoch}"
        + ("" if split.decisions is None else f" of {', '.join(map(str, split.decisions))}")
        for split in splits
    ]
    if stop is not None:
        parts.append(f"stop at {stop}" if not splits else f"stopped at {stop}")
    epoch = splits[0].epoch if splits else stop
    return Variant(epoch or 0, ", ".join(parts))
