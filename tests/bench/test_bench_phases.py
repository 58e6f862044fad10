"""The phases of a step: what is observed, how it is summed up, the command."""

import json
from pathlib import Path

import pytest
import torch

from bench import phases
from bench.phases import PHASES, Phase, observe, summary


def test_fresh_memory_is_seen_as_page_faults() -> None:
    milliseconds, faults, _ = observe(lambda: torch.zeros(16 << 20).add_(1))
    assert faults > 0
    assert milliseconds > 0


def test_a_phase_is_the_mean_over_architectures_of_medians_over_rounds() -> None:
    def step(value: float) -> dict[str, tuple[float, float, float]]:
        return {"forward": (value, 2 * value, 3 * value)}

    runs = [[step(1), step(10)], [step(2), step(20)], [step(90), step(900)]]
    assert summary(runs, "forward") == Phase(11, 22, 33)


@pytest.mark.slow
def test_the_command_names_every_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "phases.json"
    arguments = ["--networks", "only_conv", "--batch", "2", "--rounds", "1"]
    assert phases.main([*arguments, "--architectures", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    record = json.loads(path.read_text())
    for setting in record["settings"].values():
        for contestant in setting["only_conv"].values():
            assert tuple(contestant) == PHASES
            assert all(phase["milliseconds"] > 0 for phase in contestant.values())
    for word in (*PHASES, *phases.COPIES, "malloc: default", "malloc: keeping"):
        assert word in printed
