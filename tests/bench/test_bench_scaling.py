"""How costs grow: the arithmetic, the table, the picture and the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import plot, scaling
from bench.scaling import OURS, PANELS, STOCK, growth


def panel(slope: int, cost: Callable[[int], float]) -> dict[str, Any]:
    points = [
        {
            "size": size,
            "seconds": {
                who: dict.fromkeys(("value", "low", "high"), cost(size)) for who in (OURS, STOCK)
            },
            "ratio": {"value": 1.0, "low": 0.9, "high": 1.1},
        }
        for size in (32, 64, 128, 256)
    ]
    return {"title": "a step", "unit": "images", "slope": slope, "reference": 64, "points": points}


def record() -> dict[str, Any]:
    machine = {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None}
    return {
        "machine": machine | {"torch": "2.14.1", "python": "3.11", "commit": "abc"},
        "command": "python -m bench.scaling",
        "panels": {"a": panel(1, lambda n: 0.001 * n), "b": panel(2, lambda n: 0.001 * n * n)},
    }


def test_linear_growth_is_one() -> None:
    assert growth(panel(1, lambda n: 3.0 * n), OURS) == 1
    assert growth(panel(1, lambda n: 3.0 * n * n), OURS) == 4
    assert growth(panel(2, lambda n: 3.0 * n * n), STOCK) == 1


def test_the_table_has_a_line_for_each_size() -> None:
    lines = [" ".join(line.split()) for line in scaling.text(record()).splitlines()]
    assert "64 64.00 ms 64.00 ms ×1.00 [0.90–1.10]" in lines
    assert lines.count("a unit at the end ÷ at 64 1.00 1.00") == 2


def test_the_picture_is_written(tmp_path: Path) -> None:
    plot.plot_scaling(record(), tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_costs_are_shown_up_to_512_images_and_256_channels() -> None:
    ends = {name: (panel.sizes[-1], panel.slope) for name, panel in PANELS.items()}
    assert ends == {
        "step_images": (512, 1),
        "step_channels": (256, 2),
        "convolution_images": (512, 1),
        "convolution_channels": (256, 1),
    }
    assert all(panel.reference in panel.sizes for panel in PANELS.values())


def test_both_contestants_run() -> None:
    for actions in (
        scaling.step_actions(images=2, channels=8),
        scaling.convolution_actions(images=2, outputs=8),
    ):
        assert list(actions) == [OURS, STOCK]
        for action in actions.values():
            action()


@pytest.mark.slow
def test_a_small_run_from_end_to_end(tmp_path: Path) -> None:
    path, picture = tmp_path / "scaling.json", tmp_path / "scaling.png"
    arguments = ["--largest", "1", "--rounds", "1", "--threads", "1"]
    assert scaling.main([*arguments, "--json", str(path), "--plot", str(picture)]) == 0
    content = json.loads(path.read_text())
    assert list(content["panels"]) == list(PANELS)
    assert [p["size"] for p in content["panels"]["convolution_images"]["points"]] == [8, 16, 32, 64]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bad_arguments_get_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--plot", "/no/such/place/a.png"])
    assert capsys.readouterr().err.count("\n") == 1
