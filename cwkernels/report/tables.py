"""Tables 1 and 5, and what stands beside a ranking, as cells."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cwkernels.ranking.evaluate import SUPER_NETWORK
from cwkernels.ranking.metrics import TOP
from cwkernels.report.paper import SELECTIONS, TABLE_1, TABLE_5
from cwkernels.report.runs import BASELINE, Group, baseline_of

TITLES = {
    "full": "NAS-Bench-201 full",
    "no_zero": "NAS-Bench-201 no Zero",
    "only_conv": "NAS-Bench-201 only Conv.",
    "macro": "NAS-Bench-Macro",
}
CLOSE = 0.02
"""How far apart two split epochs may be, as parts of their schedules, to stand beside each other:
half of what parts the paper's."""


@dataclass(frozen=True)
class Table:
    """Cells, with a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def csv(self) -> str:
        """As CSV."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([self.head, *self.rows])
        return file.getvalue()

    def markdown(self) -> str:
        """As a table of Markdown."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table_1(groups: Sequence[Group]) -> Table:
    """Training time and peak memory: the baseline's, and what variants cost more."""
    head = ("network", "variant", "of epochs", "runs", "time", "memory", "paper", "paper's time")
    rows = []
    for group in groups:
        paper = TABLE_1[group.network]
        near = _nearest(group, list(paper.overheads))
        base = baseline_of(groups, group.network)
        seconds = _mean([run.seconds for run in group.runs])
        size = _mean([run.peak_bytes for run in group.runs])
        time, memory = f"{seconds:.0f} s", f"{size / 2**20:.0f} MiB"
        if base is not None and base is not group:
            time = _percent(seconds / _mean([r.seconds for r in base.runs]))
            memory = _percent(size / _mean([r.peak_bytes for r in base.runs]))
        said = _said(group, near, (f"{paper.seconds} s", f"{paper.megabytes} MB"), paper.epochs)
        if near is not None:
            more_time, more_memory = paper.overheads[near]
            said = (said[0], f"{more_time:+.1f} %", f"{more_memory:+.1f} %")
        rows.append((*_name(group), time, memory, *said))
    return Table((*head, "paper's memory"), tuple(rows))


def table_5(groups: Sequence[Group]) -> Table:
    """Kendall's tau over all ranked architectures and over the 50 best of them."""
    head = ("network", "variant", "of epochs", "runs", "KT all", "KT 50", "paper", "paper's KT all")
    rows = []
    for group in groups:
        paper = TABLE_5[group.network]
        near = _nearest(group, list(paper.splits))
        said = _said(group, near, _two_digits(paper.baseline), TABLE_1[group.network].epochs)
        if near is not None:
            said = (said[0], *_two_digits(paper.splits[near]))
        own = (_with_deviation(group, "tau", 3), _with_deviation(group, "tau_best", 3))
        rows.append((*_name(group), *own, *said))
    return Table((*head, "paper's KT 50"), tuple(rows))


def selection_table(groups: Sequence[Group]) -> Table:
    """The one architecture that a ranking selects, beside the numbers of section 4.1."""
    head = ("network", "variant", "of epochs", "runs", "accuracy, %", "improvement", "paper")
    rows = []
    for group in groups:
        own = (_with_deviation(group, "top_1", 2), _with_deviation(group, "improvement_1", 3))
        rows.append((*_name(group), *own, *_selected(group)))
    return Table((*head, "paper's accuracy, %", "paper's improvement"), tuple(rows))


def _selected(group: Group) -> tuple[str, str, str]:
    """What the paper's text says of the baseline, or of the split that it names."""
    paper, total = SELECTIONS.get(group.network), TABLE_1[group.network].epochs
    split = group.variant.is_split
    if paper is None or not (split or group.variant.label == BASELINE):
        return "", "", ""
    if split and abs(paper.split / total - group.fraction) > CLOSE:
        return "", "", ""
    line = f"split at {paper.split} of {total}" if split else f"baseline, {total}"
    accuracy = paper.accuracy[split]
    said = "" if accuracy is None else f"{accuracy:.1f}"
    return line, said, f"{paper.improvement[split]:.2f}"


_SELECTED = {
    "KT 50": ("tau_best", 3),
    **{f"top {n}": (f"top_{n}", 2) for n in TOP},
    **{f"impr. {n}": (f"improvement_{n}", 3) for n in TOP},
}
"""Metrics by column, each with its digits."""


def predictor_table(groups: Sequence[Group]) -> Table:
    """The first run of each variant beside what needs no training, and the ceiling."""
    head = ("network", "variant", "predictor", "KT all", "95 %", "gain, 95 %", *_SELECTED)
    rows = []
    for group in groups:
        evaluation = group.runs[0].evaluation
        if evaluation is None:
            continue
        named = (TITLES[group.network], group.variant.label)
        for predictor, result in evaluation["results"].items():
            tau, gain = result["tau"], result["gain"]
            interval = f"{_number(tau['low'], 3)} – {_number(tau['high'], 3)}"
            more = f"{_number(gain['low'], 3)} – {_number(gain['high'], 3)}"
            more = "" if predictor == SUPER_NETWORK else more
            cells = (_number(tau["value"], 3), interval, more)
            rows.append((*named, predictor, *cells, *_selections(result["metrics"])))
        ceiling = evaluation["ceiling"]
        if ceiling is not None:
            cells = (_number(ceiling["tau"], 3), "", "")
            rows.append((*named, "noise ceiling", *cells, *_selections(ceiling)))
    return Table(head, tuple(rows))


def _selections(metrics: dict[str, float | None]) -> tuple[str, ...]:
    return tuple(_number(metrics[name], digits) for name, digits in _SELECTED.values())


def _name(group: Group) -> tuple[str, ...]:
    return TITLES[group.network], group.variant.label, str(group.epochs), str(len(group.runs))


def _nearest(group: Group, epochs: list[int]) -> int | None:
    """The paper's split epoch at the same part of its schedule, if there is one."""
    if not group.variant.is_split:
        return None
    total = TABLE_1[group.network].epochs
    best = min(epochs, key=lambda epoch: abs(epoch / total - group.fraction))
    return best if abs(best / total - group.fraction) <= CLOSE else None


def _said(
    group: Group, near: int | None, baseline: tuple[str, str], epochs: int
) -> tuple[str, str, str]:
    """Which line of the paper's table, and what the baseline's says."""
    if near is not None:
        return f"split at {near} of {epochs}", "", ""
    if group.variant.label == BASELINE:
        return (f"baseline, {epochs}", *baseline)
    return "", "", ""


def _with_deviation(group: Group, name: str, digits: int) -> str:
    mean, deviation = group.mean(name), group.deviation(name)
    return _number(mean, digits) + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")


def _two_digits(pair: tuple[float, float]) -> tuple[str, str]:
    return f"{pair[0]:.2f}", f"{pair[1]:.2f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
