"""Counts from outside: the paper's tables 2 and 3, and the two benchmarks' published files."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import cwkernels as cw
from cwkernels.spaces.macro import flops, parameters
from cwkernels.spaces.macro import supernet_parameters as macro_parameters
from cwkernels.spaces.nb201 import supernet_parameters as nb201_parameters

TABLE_2 = {
    "stem": 464,
    "0": 16_896,
    "1": 16_896,
    "2": 14_464,
    "3": 67_584,
    "4": 67_584,
    "5": 57_600,
    "6": 270_336,
    "7": 270_336,
    "head": 778,
}
TABLE_3 = {
    "stem": 928,
    "0": 36_896,
    "1": 87_616,
    "2": 133_184,
    "3": 322_688,
    "4": 322_688,
    "5": 503_936,
    "6": 1_235_200,
    "7": 1_235_200,
    "head": 343_050,
}


def ground_truth(name: str) -> Path:
    root = Path(__file__).resolve().parents[2]
    data = Path(os.environ.get("CWKERNELS_DATA", root.parent / "shared" / "data"))
    path = data / "groundtruth" / name
    if not path.is_file():
        pytest.skip(f"{path} is absent; CWKERNELS_DATA names the folder of the real data")
    return path


@pytest.fixture(scope="module")
def nb201_rows() -> list[dict[str, str]]:
    with ground_truth("nb201_nats_200epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def macro_rows() -> dict[str, Any]:
    rows: dict[str, Any] = json.loads(ground_truth("nas-bench-macro_cifar10.json").read_text())
    return rows


def test_table_2_cell_by_cell() -> None:
    counted = nb201_parameters(cw.spaces.nb201("full"), skip_projection=True)
    assert list(counted.items()) == list(TABLE_2.items())
    assert sum(counted.values()) == 782_938


def test_table_3_layer_by_layer() -> None:
    counted = macro_parameters()
    assert list(counted.items()) == list(TABLE_3.items())
    assert sum(counted.values()) == 4_221_386


@pytest.mark.parametrize(
    ("split", "skip_projection", "total"),
    [
        (False, False, 718_426),
        (False, True, 782_938),
        (True, False, 4_159_066),
        (True, True, 4_567_642),
    ],
)
def test_nas_bench_201_totals(split: bool, skip_projection: bool, total: int) -> None:
    counted = nb201_parameters(cw.spaces.nb201("full"), split, skip_projection)
    assert sum(counted.values()) == total


def test_macro_total_after_the_split() -> None:
    assert sum(macro_parameters(split=True).values()) == 11_902_410


def test_every_nas_bench_201_string_and_op_code(nb201_rows: list[dict[str, str]]) -> None:
    space = cw.spaces.nb201("full")
    archs = torch.stack([space.parse(row["arch"]) for row in nb201_rows])
    assert [space.format(arch) for arch in archs] == [row["arch"] for row in nb201_rows]
    codes = torch.tensor([[int(code) for code in row["ops"]] for row in nb201_rows])
    assert torch.equal(space.codes(archs), codes)
    index = space.index(archs)
    assert isinstance(index, torch.Tensor)
    assert torch.equal(index.sort().values, torch.arange(15_625))


@pytest.mark.parametrize("subset", ["no_zero", "only_conv"])
def test_smaller_spaces_hold_the_published_architectures_they_can_name(
    subset: str, nb201_rows: list[dict[str, str]]
) -> None:
    space = cw.spaces.nb201(subset)
    lacking = ("none",) if subset == "no_zero" else ("none", "skip_connect", "avg_pool_3x3")
    strings = {row["arch"] for row in nb201_rows if not any(op in row["arch"] for op in lacking)}
    assert {space.format(arch) for arch in space} == strings


def test_every_macro_string_index_and_count(macro_rows: dict[str, Any]) -> None:
    space = cw.spaces.macro()
    archs = torch.stack([space.parse(string) for string in macro_rows])
    assert [space.format(arch) for arch in archs] == list(macro_rows)
    index = space.index(archs)
    assert isinstance(index, torch.Tensor)
    assert torch.equal(index.sort().values, torch.arange(6_561))
    assert parameters(archs).tolist() == [row["params"] for row in macro_rows.values()]
    assert flops(archs).tolist() == [row["flops"] for row in macro_rows.values()]
