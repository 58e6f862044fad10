"""Figures 4 to 7 as numbers, which CSV files hold and pictures show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cwkernels.ranking.metrics import TOP
from cwkernels.report.paper import SELECTIONS
from cwkernels.report.runs import Group, RunRecord, baseline_of
from cwkernels.report.tables import TITLES, Table


@dataclass(frozen=True)
class Line:
    """A curve with its spread.

    Attributes:
        label: in the legend.
        x, y: its points.
        deviation: standard deviation of y over seeds; NaN where there is one seed.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: above it.
        x, y: what the axes are.
        lines: in it.
        falling: whether the x axis runs from right to left, as figure 4's does.
        improvement: mean and best accuracy of the ranked architectures, by which a second axis
            shows y as improvement value; None for none.
        marks: horizontal lines, by label.
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    falling: bool = False
    improvement: tuple[float, float] | None = None
    marks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Figure:
    """Panels in rows; ``name`` is the file's."""

    name: str
    rows: tuple[tuple[Panel, ...], ...]

    def table(self) -> Table:
        """Every point of every line."""
        rows = [
            (panel.title, panel.x, panel.y, line.label, *map(_cell, point))
            for panels in self.rows
            for panel in panels
            for line in panel.lines
            for point in zip(line.x, line.y, line.deviation, strict=True)
        ]
        return Table(("panel", "x axis", "y axis", "line", "x", "y", "deviation"), tuple(rows))


def all_figures(groups: Sequence[Group]) -> Iterator[Figure]:
    """The figures that the runs have the records for."""
    cells = [name for name in ("full", "no_zero", "only_conv") if _ranked(groups, name)]
    if cells:
        yield selection_figure("figure_4", groups, cells)
    if _ranked(groups, "macro"):
        yield selection_figure("figure_5", groups, ["macro"])
    stopped = [panel for name in TITLES if (panel := _changes(groups, name, stops=True))]
    if stopped:
        yield Figure("figure_6", (tuple(stopped),))
    trained = [panel for name in TITLES for panel in _training(groups, name)]
    if trained:
        yield Figure("figure_7", (tuple(trained[::2]), tuple(trained[1::2])))


def selection_figure(name: str, groups: Sequence[Group], networks: Sequence[str]) -> Figure:
    """Figures 4 and 5: how far a ranking leads, and what the epoch of the split changes."""
    top = tuple(_sweep(groups, network) for network in networks)
    bottom = [panel for n in networks if (panel := _changes(groups, n, stops=False))]
    return Figure(name, (top, tuple(bottom)) if bottom else (top,))


def _ranked(groups: Sequence[Group], network: str) -> list[Group]:
    """A network's groups that were evaluated, those stopped early left out."""
    return [
        group
        for group in groups
        if group.network == network
        and not group.variant.is_stop
        and any(run.evaluation is not None for run in group.runs)
    ]


def _sweep(groups: Sequence[Group], network: str) -> Panel:
    """The mean accuracy of what a ranking leaves, from all architectures down to one."""
    own = _ranked(groups, network)
    evaluation = next(run.evaluation for run in own[0].runs if run.evaluation is not None)
    count = len(evaluation["sweep"])
    sizes = tuple(float(n) for n in range(count, 0, -1))
    lines = []
    for group in own:
        curves = [r.evaluation["sweep"][::-1] for r in group.runs if r.evaluation is not None]
        lines.append(_line(group.variant.label, sizes, np.array(curves)))
    return Panel(
        TITLES[network],
        "architectures left",
        "mean accuracy, %",
        tuple(lines),
        falling=True,
        improvement=(evaluation["mean"], evaluation["best"]),
        marks=_selected_in_the_paper(network),
    )


def _selected_in_the_paper(network: str) -> tuple[tuple[str, float], ...]:
    """The accuracies that the paper's text gives of the one architecture selected."""
    paper = SELECTIONS.get(network)
    if paper is None:
        return ()
    names = ("paper: baseline's top 1", f"paper: top 1, split at {paper.split}")
    pairs = zip(names, paper.accuracy, strict=True)
    return tuple((name, value) for name, value in pairs if value is not None)


def _changes(groups: Sequence[Group], network: str, *, stops: bool) -> Panel | None:
    """What a split, or a stop, at each epoch adds to the accuracy of the top N."""
    base = baseline_of(groups, network)
    own = [
        group
        for group in groups
        if group.network == network and (group.variant.is_stop if stops else group.variant.is_split)
    ]
    own = [group for group in own if any(run.evaluation is not None for run in group.runs)]
    if base is None or not own or not any(run.evaluation is not None for run in base.runs):
        return None
    epochs = tuple(float(group.variant.epoch) for group in own)
    lines = [
        Line(
            f"top {n}",
            epochs,
            tuple(group.mean(f"top_{n}") - base.mean(f"top_{n}") for group in own),
            tuple(group.deviation(f"top_{n}") for group in own),
        )
        for n in TOP
    ]
    what = "stopped after epoch" if stops else "split after epoch"
    return Panel(
        TITLES[network],
        f"{what} (of {base.epochs})",
        "accuracy over the baseline, %",
        tuple(lines),
        marks=(("baseline", 0.0),),
    )


def _training(groups: Sequence[Group], network: str) -> Iterator[Panel]:
    """Figure 7: validation loss and accuracy of the baseline, else of the first variant."""
    own = [group for group in groups if group.network == network]
    if not own:
        return
    for name, label in (("validation_loss", "loss"), ("validation_accuracy", "accuracy, %")):
        epochs = _validated(own[0].runs[0], name)
        values = [
            [getattr(record, name) for record in run.metrics if record.epoch in epochs]
            for run in own[0].runs
        ]
        line = _line(own[0].variant.label, tuple(map(float, epochs)), np.array(values, float))
        yield Panel(TITLES[network], "epoch", f"validation {label}", (line,))


def _validated(run: RunRecord, name: str) -> list[int]:
    return [record.epoch for record in run.metrics if getattr(record, name) is not None]


def _line(label: str, x: tuple[float, ...], curves: npt.NDArray[np.float64]) -> Line:
    """A line of one curve for each seed."""
    several = len(curves) > 1
    deviation = curves.std(axis=0, ddof=1) if several else np.full(len(x), np.nan)
    return Line(label, x, tuple(curves.mean(axis=0).tolist()), tuple(deviation.tolist()))


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
