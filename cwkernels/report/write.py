"""All tables and figures of some runs into a folder."""

from collections.abc import Sequence
from pathlib import Path

from cwkernels.files import write_whole
from cwkernels.report.figures import all_figures
from cwkernels.report.pictures import picture
from cwkernels.report.runs import Group, grouped, read_run
from cwkernels.report.tables import predictor_table, selection_table, table_1, table_5

TABLES = {
    "table_1": ("Table 1: what training costs", table_1),
    "table_5": ("Table 5: ranking correlations", table_5),
    "selections": ("Section 4.1: the one architecture selected", selection_table),
    "predictors": ("Beside what needs no training", predictor_table),
}
"""By file name: the heading in ``report.md``, and what makes it."""


def write_report(runs: Sequence[Path], out: Path) -> list[Path]:
    """Writes what the records of runs hold of the paper's tables and figures.

    Each table as CSV, all of them as ``report.md``; each figure as CSV and PNG. A figure for which
    no run has the records is left out.

    Args:
        runs: folders of `cwkernels train`, ranked and evaluated.
        out: a folder; it is made if it is not there.

    Returns:
        The files that were written.

    Raises:
        ImportError: without matplotlib.
        FileNotFoundError, ValueError: for a folder that is no run, or one given twice.
        OSError: if a file cannot be written.
    """
    if not runs or len({run.resolve() for run in runs}) < len(runs):
        got = ", ".join(map(str, runs)) or "none"
        raise ValueError(f"report: runs: wanted at least one, each once, got {got}")
    groups = grouped(map(read_run, runs))
    out.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.csv": make(groups).csv().encode() for name, (_, make) in TABLES.items()}
    files["report.md"] = _page(groups).encode()
    for figure in all_figures(groups):
        files[f"{figure.name}.csv"] = figure.table().csv().encode()
        files[f"{figure.name}.png"] = picture(figure)
    for name, content in files.items():
        write_whole(out / name, content)
    return [out / name for name in files]


def _page(groups: Sequence[Group]) -> str:
    parts = [f"## {heading}\n\n{make(groups).markdown()}" for heading, make in TABLES.values()]
    return "# Report\n\n" + "\n".join(parts)
