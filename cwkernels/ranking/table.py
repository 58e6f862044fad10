"""An evaluation as a table for a terminal."""

import math
from collections.abc import Mapping

from cwkernels.ranking.evaluate import Evaluation, Interval, Result
from cwkernels.ranking.metrics import BEST, PRECISION, TOP

CEILING = "noise ceiling"


def text(evaluation: Evaluation) -> str:
    """A line for each predictor, and what the lines cannot say."""
    head = ["", "tau", "95 %", "gain", f"tau best {BEST}"]
    head += [f"top {n}" for n in TOP] + [f"impr. {n}" for n in TOP]
    head += [f"prec. {k}" for k in PRECISION]
    rows = [head, *(_row(name, result) for name, result in evaluation.results.items())]
    if evaluation.ceiling is not None:
        ceiling = evaluation.ceiling
        rows.append([CEILING, _number(ceiling["tau"]), "", "", *_rest(ceiling)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*lines, "", *notes(evaluation)])


def notes(evaluation: Evaluation) -> list[str]:
    """What was ranked, in sentences."""
    e = evaluation
    first = (
        f"{e.space}: {e.architectures} architectures, ground truth {e.mean:.2f} % on average, "
        f"{e.best:.2f} % at best; {e.distinct} different scores"
    )
    lines = [first + (f", {e.nan} NaN." if e.nan else ".")]
    if e.isomorphic is not None:
        lines.append(f"The benchmark counts {e.isomorphic} of them as different cells.")
    if e.ceiling is None:
        lines.append("The ground truth has no single trainings, so its noise is unknown.")
    else:
        lines.append(f"The {CEILING} is one training of each against the mean of its others.")
    lines.append("gain: the super-network's tau minus the line's, in the same bootstrap (95 %).")
    return lines


def _row(name: str, result: Result) -> list[str]:
    gain = "" if result.gain.value == 0 else f"{_number(result.gain.value)} {_span(result.gain)}"
    own = [name, _number(result.tau.value), _span(result.tau), gain]
    return own + _rest(result.metrics)


def _rest(metrics: Mapping[str, float]) -> list[str]:
    cells = [_number(metrics["tau_best"])]
    cells += [f"{metrics[f'top_{n}']:.2f}" for n in TOP]
    cells += [_number(metrics[f"improvement_{n}"]) for n in TOP]
    return cells + [_number(metrics[f"precision_{k}"]) for k in PRECISION]


def _span(interval: Interval) -> str:
    return f"[{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
