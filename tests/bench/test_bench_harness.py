"""Rivals take turns in both orders; ratios, files and the machine's line are what they say."""

import json
from pathlib import Path

import pytest
import torch

from bench import harness
from bench.harness import Interval, Samples, describe_machine, interleave, write_json

SAMPLES = Samples({"a": ((1.0, 3.0, 2.0), (4.0, 4.0, 4.0)), "b": ((2.0, 6.0, 4.0), (8.0,) * 3)})


def test_each_callable_runs_in_both_orders_equally_often_after_a_warm_up() -> None:
    calls: list[tuple[str, int]] = []
    cases = [
        {name: lambda name=name, case=case: calls.append((name, case)) for name in "ABC"}
        for case in range(2)
    ]
    samples = interleave(cases, rounds=2)
    forwards, backwards = list("ABC"), list("CBA")
    orders = [[name for name, _ in calls[i : i + 3]] for i in range(0, len(calls), 3)]
    warm_up = [forwards, backwards]
    assert orders == [*warm_up, forwards, backwards, backwards, forwards]
    assert [case for _, case in calls[::3]] == [0, 1] * 3
    assert samples.num_cases == 2
    assert samples.num_rounds == 2
    assert set(samples.seconds) == set("ABC")


def test_an_odd_number_of_rounds_is_raised() -> None:
    assert interleave([{"a": lambda: None}], rounds=3).num_rounds == 4


def test_the_rounds_can_follow_from_the_warm_up() -> None:
    seen: list[float] = []

    def rounds(warm_up: float) -> int:
        seen.append(warm_up)
        return 2

    assert interleave([{"a": lambda: None}], rounds=rounds).num_rounds == 2
    assert len(seen) == 1


def test_samples_lie_by_case_and_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(harness, "seconds_of", lambda action, device: float(next(clock)))
    samples = interleave([{"a": lambda: None}] * 2, rounds=2)
    assert samples.seconds == {"a": ((2.0, 4.0), (3.0, 5.0))}  # 0 and 1 were the warm-up


def test_a_speed_is_a_ratio_of_medians() -> None:
    assert SAMPLES.medians("a") == [2.0, 4.0]
    assert SAMPLES.mean_of_medians("a") == 3.0
    assert SAMPLES.mean("b").value == 6.0
    # What disturbs a round disturbs both, so a ratio that is the same in all rounds has no spread.
    assert SAMPLES.ratio("b", "a") == Interval(2.0, 2.0, 2.0)
    assert SAMPLES.paired_ratios("b", "a") == [2.0] * 6


def test_a_spread_encloses_its_value_and_is_the_same_each_time() -> None:
    interval = SAMPLES.mean("a")
    assert interval.low <= interval.value <= interval.high
    assert interval.low < interval.high
    assert interval == SAMPLES.mean("a")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": Interval(1.0, 0.5, 2.0)})
    assert json.loads(path.read_text()) == {"a": {"value": 1.0, "low": 0.5, "high": 2.0}}
    with pytest.raises(TypeError):
        write_json(path, {"a": 1, "b": object()})
    assert json.loads(path.read_text())["a"]["value"] == 1.0
    assert list(tmp_path.iterdir()) == [path]


def test_the_machine_is_named() -> None:
    machine = describe_machine(torch.device("cpu"))
    assert machine.torch == torch.__version__
    assert machine.gpu is None
    assert machine.commit
    assert f"{machine.threads} threads" in machine.line()


def test_no_commit_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_machine(torch.device("cpu")).commit == "unknown"
