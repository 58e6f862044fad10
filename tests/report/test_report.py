"""Tables and figures from records: ours right, the paper's as printed, and where it belongs."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import BASELINE, SPLIT, STOP, made_run

from cwkernels.report import paper
from cwkernels.report.figures import Figure, all_figures
from cwkernels.report.runs import Group, grouped, read_run
from cwkernels.report.tables import Table, predictor_table, selection_table, table_1, table_5
from cwkernels.report.write import write_report
from cwkernels.testing import refused

ONLY_CONV = {"name": "nb201", "subset": "only_conv"}
MACRO = {"name": "macro"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two baselines, two splits and a stop of one network; a split of another, alone."""
    folder = tmp_path_factory.mktemp("runs")
    options: dict[str, dict[str, Any]] = {
        "base_0": {"noise": 9.0},
        "base_1": {"noise": 30.0, "seed": 1, "seconds": 12.0},
        "split_0": {"noise": 1.0, "seconds": 11.0},
        "split_1": {"noise": 2.0, "seed": 1, "seconds": 13.0},
        "stop": {"noise": 9.0},
        "macro": {"noise": 9.0},
        "unranked": {"evaluated": False},
    }
    recipes = {"base": BASELINE, "split": SPLIT, "stop": STOP, "macro": SPLIT, "unranked": SPLIT}
    networks = {"macro": MACRO, "unranked": {"name": "nb201", "subset": "no_zero"}}
    return {
        name: made_run(
            folder / name,
            networks.get(name, ONLY_CONV),
            recipes[name.partition("_")[0]],
            **own,
        )
        for name, own in options.items()
    }


@pytest.fixture(scope="module")
def groups(runs: dict[str, Path]) -> list[Group]:
    return grouped(read_run(path) for path in runs.values())


def cells(table: Table, *name: str) -> dict[str, str]:
    """The row that begins so, by column."""
    (row,) = (row for row in table.rows if row[: len(name)] == name)
    return dict(zip(table.head, row, strict=True))


def test_repetitions_form_a_group(groups: list[Group]) -> None:
    found = [(g.network, g.variant.label, len(g.runs)) for g in groups]
    assert found == [
        ("macro", "split at 12", 1),
        ("no_zero", "split at 12", 1),
        ("only_conv", "baseline", 2),
        ("only_conv", "stop at 8", 1),
        ("only_conv", "split at 12", 2),
    ]


def test_table_1(groups: list[Group]) -> None:
    table = table_1(groups)
    conv = "NAS-Bench-201 only Conv."
    base = cells(table, conv, "baseline")
    assert (base["time"], base["memory"], base["runs"]) == ("220 s", "120 MiB", "2")
    assert (base["paper's time"], base["paper's memory"]) == ("2783 s", "1895 MB")
    split = cells(table, conv, "split at 12")
    assert (split["time"], split["memory"]) == ("+9.1 %", "+0.0 %")  # 240 s of 220
    assert split["paper"] == "split at 150 of 250"  # 12 of 20 is 0.6 of the schedule, too
    assert (split["paper's time"], split["paper's memory"]) == ("+3.0 %", "+0.0 %")
    stop = cells(table, conv, "stop at 8")
    assert (stop["time"], stop["memory"], stop["paper"]) == ("-63.6 %", "-10.0 %", "")
    alone = cells(table, "NAS-Bench-Macro", "split at 12")
    assert (alone["time"], alone["paper"]) == ("200 s", "split at 30 of 50")


def test_table_5(groups: list[Group]) -> None:
    conv = "NAS-Bench-201 only Conv."
    split = cells(table_5(groups), conv, "split at 12")
    taus = [run.metric("tau") for run in groups[-1].runs]
    assert split["KT all"] == f"{np.mean(taus):.3f} ± {np.std(taus, ddof=1):.3f}"
    assert (split["paper's KT all"], split["paper's KT 50"]) == ("0.60", "0.36")
    base = cells(table_5(groups), conv, "baseline")
    assert float(split["KT all"][:5]) > float(base["KT all"][:5])
    assert (base["paper's KT all"], base["paper's KT 50"]) == ("0.56", "0.31")
    assert cells(table_5(groups), "NAS-Bench-201 no Zero")["KT all"] == "–"


def test_the_selected_architecture(groups: list[Group]) -> None:
    table = selection_table(groups)
    split = cells(table, "NAS-Bench-201 only Conv.", "split at 12")
    assert (split["paper"], split["paper's accuracy, %"]) == ("split at 150 of 250", "93.7")
    assert split["paper's improvement"] == "0.64"
    assert cells(table, "NAS-Bench-201 only Conv.", "baseline")["paper's improvement"] == "0.53"
    assert cells(table, "NAS-Bench-201 only Conv.", "stop at 8")["paper"] == ""
    assert cells(table, "NAS-Bench-Macro")["paper"] == ""
    assert groups[-1].mean("improvement_1") == pytest.approx(
        float(split["improvement"][:5]), abs=1e-3
    )


def test_predictors_stand_beside(groups: list[Group]) -> None:
    names = ["super-network", "super-network, by loss", "parameters", "FLOPs", "kernel area"]
    rows = [
        row for row in predictor_table(groups).rows if row[:2] == ("NAS-Bench-Macro", "split at 12")
    ]
    assert [row[2] for row in rows] == names
    assert (rows[0][5], rows[4][5] != "") == ("", True)
    assert rows[4][3] == "1.000"  # the made-up truth is the kernel area


def figure(groups: list[Group], name: str) -> Figure:
    (found,) = (figure for figure in all_figures(groups) if figure.name == name)
    return found


def test_figure_4(groups: list[Group]) -> None:
    top, bottom = figure(groups, "figure_4").rows
    assert [panel.title for panel in top] == ["NAS-Bench-201 only Conv."]
    labels = [line.label for line in top[0].lines]
    assert labels == ["baseline", "split at 12"]
    assert [value for _, value in top[0].marks] == [93.6, 93.7]
    split = top[0].lines[1]
    assert split.x == tuple(range(64, 0, -1))
    assert split.y[0] == pytest.approx(top[0].lines[0].y[0])  # all architectures: the same mean
    assert split.y[-1] == pytest.approx(groups[-1].mean("top_1"))
    assert split.deviation[-1] == pytest.approx(groups[-1].deviation("top_1"))
    assert [line.label for line in bottom[0].lines] == ["top 1", "top 5", "top 10"]
    change = groups[-1].mean("top_5") - groups[2].mean("top_5")
    assert bottom[0].lines[1].x == (12,)
    assert bottom[0].lines[1].y == pytest.approx((change,))


def test_figure_5_without_a_baseline_has_no_changes(groups: list[Group]) -> None:
    (top,) = figure(groups, "figure_5").rows
    assert [panel.title for panel in top] == ["NAS-Bench-Macro"]
    assert math.isnan(top[0].lines[0].deviation[0])


def test_figure_6(groups: list[Group]) -> None:
    ((panel,),) = figure(groups, "figure_6").rows
    assert panel.x == "stopped after epoch (of 20)"
    change = groups[3].mean("top_1") - groups[2].mean("top_1")
    assert panel.lines[0].x == (8,)
    assert panel.lines[0].y == pytest.approx((change,))


def test_figure_7(groups: list[Group]) -> None:
    losses, accuracies = figure(groups, "figure_7").rows
    titles = ["NAS-Bench-201 no Zero", "NAS-Bench-201 only Conv.", "NAS-Bench-Macro"]
    assert [panel.title for panel in losses] == titles
    line = losses[1].lines[0]
    assert (line.label, line.x) == ("baseline", tuple(range(2, 21, 2)))  # validated every second
    assert line.y == pytest.approx([3 / epoch for epoch in line.x])
    assert accuracies[1].lines[0].y[-1] == 60


def test_everything_is_written(runs: dict[str, Path], tmp_path: Path) -> None:
    files = write_report(list(runs.values()), tmp_path / "new" / "report")
    names = {path.name for path in files}
    figures = {f"figure_{n}" for n in (4, 5, 6, 7)}
    tables = {"table_1", "table_5", "selections", "predictors"}
    assert names == {
        "report.md",
        *(f"{name}.csv" for name in figures | tables),
        *(f"{name}.png" for name in figures),
    }
    for path in files:
        content = path.read_bytes()
        assert content
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
        if path.suffix == ".csv":
            rows = list(csv.reader(content.decode().splitlines()))
            assert len({len(row) for row in rows}) == 1
    assert "## Table 5: ranking correlations" in (tmp_path / "new/report/report.md").read_text()
    assert not [path for path in (tmp_path / "new/report").iterdir() if path.name.startswith(".")]


def test_a_figure_without_records_is_left_out(runs: dict[str, Path], tmp_path: Path) -> None:
    files = write_report([runs["unranked"]], tmp_path)
    assert [path.stem for path in files if path.suffix == ".png"] == ["figure_7"]


def test_wrong_runs_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with refused(ValueError, "report: runs: wanted at least one, each once, got none"):
        write_report([], tmp_path)
    with refused(ValueError, "report: runs: wanted at least one, each once, got "):
        write_report([runs["stop"], runs["stop"] / ".." / "stop"], tmp_path)
    with refused(FileNotFoundError, f"run {tmp_path}: wanted a run's config.json, got none"):
        write_report([tmp_path], tmp_path)
    empty = made_run(tmp_path / "empty", ONLY_CONV, BASELINE, evaluated=False)
    (empty / "metrics.jsonl").unlink()
    with refused(ValueError, "wanted a run with at least one epoch done, got none"):
        write_report([empty], tmp_path)
    other = made_run(tmp_path / "other", ONLY_CONV, {"epochs": 10}, evaluated=False)
    with refused(ValueError, "only_conv, baseline: wanted runs of one length, got [10, 20]"):
        write_report([runs["base_0"], other], tmp_path)
    fewer = shutil.copytree(runs["base_0"], tmp_path / "fewer")
    record = json.loads((fewer / "evaluation.json").read_text())
    (fewer / "evaluation.json").write_text(json.dumps(record | {"architectures": 9}))
    with refused(ValueError, "only_conv: wanted rankings of the same architectures, got [9, 64]"):
        write_report([runs["base_0"], fewer], tmp_path)
    (other / "evaluation.json").write_text("{}")
    with refused(ValueError, "wanted an evaluation (cwkernels-evaluation-1), got another"):
        write_report([other], tmp_path)


def test_the_papers_tables_have_the_same_splits() -> None:
    assert paper.TABLE_5.keys() == paper.TABLE_1.keys()
    for network, taus in paper.TABLE_5.items():
        assert taus.splits.keys() == paper.TABLE_1[network].overheads.keys()


def test_a_run_that_is_not_done_is_compared_with_nothing(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", ONLY_CONV, SPLIT)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:13]))
    groups = grouped([read_run(run)])
    for table in (table_1, table_5, selection_table):
        row = cells(table(groups), "NAS-Bench-201 only Conv.", "unfinished, 13 of 20 epochs")
        assert row["paper"] == ""


def test_labels_say_what_was_split(tmp_path: Path) -> None:
    some = made_run(
        tmp_path / "some",
        ONLY_CONV,
        {"splits": [{"epoch": 3, "decisions": [2, 4]}, {"epoch": 9}], "stop_epoch": 15},
        evaluated=False,
    )
    assert read_run(some).variant.label == "split at 3 of 2, 4, split at 9, stopped at 15"
