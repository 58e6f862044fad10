"""What benchmarks do for a GPU, as far as a machine without one can say."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import figures, gpu_tables, graphed, harness, step_profile
from bench.devices import benchmark_device
from bench.kernels import moved
from bench.passes import PASSES
from cwkernels.testing import evaluate, network_calls

CPU, META = torch.device("cpu"), torch.device("meta")


def test_nothing_is_said_of_a_gpu_that_has_not_run() -> None:
    for write in (gpu_tables.verified, gpu_tables.steps, gpu_tables.kernels):
        assert write(None) == gpu_tables.NONE


def stage(name: str, status: str = "passed", wrong: str = "", **facts: Any) -> dict[str, Any]:
    return {"stage": name, "status": status, "wrong": wrong, "facts": facts, "tail": "printed"}


def report() -> dict[str, Any]:
    times = {"ours": [[0.001, 0.001]], "stock_graphed": [[0.0025, 0.0025]]}
    content = {"passes": dict.fromkeys(PASSES, times)}
    peers: dict[str, Any] = {"settings": {"default": {"networks": {"full": content}}}}
    row = {
        "shape": "copy_rows split",
        "direction": "forward",
        "milliseconds": 0.0123,
        "ratio": {"value": 0.5, "low": 0.4, "high": 0.6},
        "rate": 81300.0,
        "unit": "calls/s",
    }
    profiled: dict[str, Any] = {
        "seconds": 0.001,
        "floor_seconds": 0.0005,
        "bytes_per_second": 1.9e12,
        "kernels": [{}, {}],
    }
    stages = [
        stage("fragments"),
        stage("tests.sgd.1", passed=40),
        stage("memcheck.sgd.1", passed=20),
        stage("memcheck.sgd.2", passed=19),
        stage("racecheck.sgd.1", "FAILED", "compute-sanitizer found 3"),
        stage("peers.full.256", **peers),
        stage("profile.full.256", **profiled),
        stage("kernels", rows=[row], batch=256),
    ]
    machine = {"cpu": "a CPU", "cores": 16, "threads": 16, "gpu": "NVIDIA H100"}
    machine |= {"torch": "2.11", "python": "3.12", "commit": "unknown"}
    machine |= {"driver": "580.1", "date": "2026-12-01"}
    found = {"device": "cuda", "machine": machine, "library": {"commit": "abc123"}}
    return {
        "environment": found,
        "failed": ["racecheck.sgd.1"],
        "left": ["synccheck.sgd.1"],
        "stages": {each["stage"]: each for each in stages},
    }


def test_what_is_verified() -> None:
    text = gpu_tables.verified(report())
    assert "NVIDIA H100, driver 580.1, 2026-12-01" in text
    assert "commit abc123" in text
    assert "| sgd | 40 passed | 39 passed | FAILED: compute-sanitizer found 3 | not run |" in text
    assert "Fragment tables: passed" in text
    assert "Not run yet: 1 stages." in text


def test_steps_and_kernels() -> None:
    steps = gpu_tables.steps(report())
    assert "| full, batch 256 | training step |" in steps
    assert "| cwkernels | 1.000 ms | 1.000 ms | 1.000 ms |" in steps
    assert "×2.50 [2.50–2.50]" in steps
    assert "1.000 ms, 2.00 times the floor, 1.90 TB/s, 2 kernels by name." in steps
    kernels = gpu_tables.kernels(report())
    assert "| copy_rows split | forward | 12.3 µs | ×0.50 [0.40–0.60] | 81300 calls/s |" in kernels


def test_a_report_is_kept_without_what_was_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bench" / "results").mkdir(parents=True)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report()))
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "DOCUMENTS", ())
    figures.main(["--gpu", str(path)])
    kept = json.loads((tmp_path / "bench" / "results" / "gpu.json").read_text())
    assert kept["stages"]["tests.sgd.1"]["facts"] == {"passed": 40}
    assert "printed" not in json.dumps(kept)
    dry = report()
    dry["environment"]["device"] = "emulated"
    path.write_text(json.dumps(dry))
    with pytest.raises(ValueError, match="got that of a dry run"):
        figures.main(["--gpu", str(path)])


def test_a_capture_warms_up_first_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            pass

        def wait_stream(self, other: object) -> None:
            events.append("wait")

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextmanager
    def inside(what: object) -> Iterator[None]:
        events.append(f"in {type(what).__name__}")
        yield
        events.append("out")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device))
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "graph", inside)
    replay = graphed.captured(lambda: events.append("run"), CPU)
    warm_up = ["wait", "in Stream", *["run"] * graphed.WARM_UP, "out", "wait"]
    assert events == [*warm_up, "in Graph", "run", "out"]
    replay()
    assert events[-1] == "replay"


def test_the_cpu_has_no_clocks_and_its_machine_no_driver() -> None:
    assert harness.clocks(CPU) == {}
    machine = harness.describe_machine(CPU)
    assert machine.driver is None
    assert machine.date is not None
    assert machine.date not in machine.line()


def test_clocks_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "$1"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    read = harness.clocks(torch.device("cuda"))
    assert read["clocks.sm"] == "--query-gpu=clocks.sm"
    assert set(read) == set(harness.CLOCKS)
    monkeypatch.setenv("PATH", "")
    assert set(harness.clocks(torch.device("cuda")).values()) == {None}


def test_devices() -> None:
    with benchmark_device("cpu") as device:
        assert device == CPU


@pytest.mark.slow
def test_a_profile_lists_what_ran(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    step_profile.main(["--batch", "2", "--json", str(path)])
    record = json.loads(path.read_text())
    names = [kernel["name"] for kernel in record["kernels"]]
    assert "cwkernels::nb201_cell" in names
    times = [kernel["microseconds"] for kernel in record["kernels"]]
    assert times == sorted(times, reverse=True)
    assert record["bytes_per_second"] == pytest.approx(record["bytes"] / record["seconds"])


def test_stock_computes_where_its_inputs_are() -> None:
    """Tensors without data, on a device that is not the CPU: a tensor from there is an error."""
    data_dependent = {"batch"}  # reads its shifts
    for call in network_calls(images=2):
        if call.operation not in data_dependent:
            inputs, cotangents = (moved(each(), META) for each in (call.inputs, call.cotangents))
            results = evaluate(call.stock, inputs, cotangents)
            assert {result.device for result in results.values() if result is not None} == {META}
