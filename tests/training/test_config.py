"""Configs from TOML and back, and what is refused by name."""

import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import NAMED, tiny_config, tiny_data

from cwkernels.training import (
    RECIPES,
    Config,
    DataConfig,
    NetworkConfig,
    RunConfig,
    Split,
    create_run,
    load_run,
)
from cwkernels.training import config as config_module

CONFIGS = Path(__file__).resolve().parents[2] / "bench/configs"


def test_nothing_is_the_default() -> None:
    assert Config.from_mapping({}) == Config()
    assert Config().recipe == RECIPES["default"]


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shown_is_what_is_read(name: str) -> None:
    config = Config(
        NetworkConfig(subset="no_zero", channels=8, skip_projection=True),
        DataConfig(root="here", images=900),
        replace(RECIPES[name], splits=(Split(3), Split(5, (2, 4))), stop_epoch=7, lr=1),
        RunConfig(seed=4, threads=2, checkpoint_seconds=0.5, graphed=True),
    )
    assert Config.from_mapping(tomllib.loads(config.to_toml())) == config


def test_every_key_is_shown() -> None:
    text = Config().to_toml()
    for table in asdict(Config()).values():
        for key in table:
            assert re.search(rf"^(# )?{key} (=|is not set)", text, re.MULTILINE), key


def test_a_base_gives_the_defaults_of_a_recipe() -> None:
    config = Config.from_mapping({"recipe": {"base": "paper", "new_sets": "at_split"}})
    assert config.recipe == replace(RECIPES["paper"], new_sets="at_split")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configs_of_the_repository_are_good(path: Path) -> None:
    Config.from_mapping(tomllib.loads(path.read_text()))


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        (
            {"nets": {}},
            "config: nets: wanted one of network, data, recipe, run, got an unknown key",
        ),
        ({"network": {"width": 4}}, "config: network.width: wanted one of name, subset"),
        ({"network": 4}, "config: network: wanted a table, got 4"),
        ({"network": {"name": "darts"}}, "network.name: wanted 'nb201' or 'macro', got 'darts'"),
        ({"network": {"channels": "4"}}, "config: network.channels: wanted an integer, got '4'"),
        ({"network": {"reserve": 1}}, "config: network.reserve: wanted true or false, got 1"),
        ({"data": {"root": 3}}, "config: data.root: wanted a string, got 3"),
        ({"recipe": {"lr": "big"}}, "config: recipe.lr: wanted a number, got 'big'"),
        ({"recipe": {"lr": True}}, "config: recipe.lr: wanted a number, got True"),
        ({"recipe": {"splits": 3}}, "config: recipe.splits: wanted a list, got 3"),
        ({"recipe": {"splits": [3]}}, "config: recipe.splits[0]: wanted a table, got 3"),
        (
            {"recipe": {"splits": [{"epoch": 1, "decisions": ["a"]}]}},
            "config: recipe.splits[0].decisions[0]: wanted an integer, got 'a'",
        ),
        ({"recipe": {"base": "mine"}}, "config: recipe.base: wanted 'default' or 'paper', got"),
        ({"recipe": {"epochs": 0}}, "Recipe: epochs: wanted at least 1, got 0"),
        ({"run": {"threads": 0}}, "run: threads: wanted at least 1, got 0"),
        ({"run": {"precision": "low"}}, "run.precision: wanted 'high' or 'highest', got 'low'"),
        (
            {"network": {"name": "macro", "channels": 8}},
            "network: channels: wanted nothing for the network macro, got 8",
        ),
        (
            {"network": {"recompute": True}},
            "network: recompute: wanted nothing for the network nb201, got True",
        ),
    ],
)
def test_what_is_wrong_is_named(tables: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        Config.from_mapping(tables)


def test_a_run_keeps_its_config(tmp_path: Path) -> None:
    config = tiny_config(NAMED["paper"])
    path = tmp_path / "deep" / "run"
    assert create_run(path, config).config == config.resolved()
    assert load_run(path).config == config.resolved()
    with pytest.raises(FileExistsError, match="wanted no run there, got one: --resume goes on"):
        create_run(path, config)


def test_what_was_chosen_for_a_run_is_written_down(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", Config())
    assert run.config.run.threads == torch.get_num_threads()
    assert load_run(tmp_path / "run").config == run.config


@pytest.mark.parametrize(
    ("device", "graphed", "resolved"),
    [("cpu", None, False), ("cuda:1", None, True), ("cpu", True, True), ("cuda", False, False)],
)
def test_a_step_is_a_graph_on_a_gpu(device: str, graphed: bool | None, resolved: bool) -> None:
    config = Config(run=RunConfig(device=device, graphed=graphed))
    assert config.resolved().run.graphed is resolved


def test_a_missing_or_damaged_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"wanted a run's config\.json, got none"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text('{"network": ')
    with pytest.raises(ValueError, match=r"wanted JSON in config\.json, got: Expecting value"):
        load_run(tmp_path)


@pytest.mark.parametrize("name", ["nb201", "macro"])
def test_networks_are_built_with_their_options(name: str) -> None:
    options: dict[str, Any] = {"name": name, "reserve": True}
    if name == "nb201":
        options |= {"subset": "no_zero", "channels": 4, "cells_per_stage": 1}
    net = NetworkConfig(**options).build()
    assert net.reserve
    assert net.space.name == ("macro" if name == "macro" else "nb201_no_zero")
    net.split()
    assert net.num_weight_sets == (44 if name == "macro" else 54)


def test_a_subset_of_the_images_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "load_cifar10", lambda root: tiny_data())
    batches = DataConfig(images=30, validation=10, batch_size=5).batches(0, "cpu")
    assert batches.source == "generated, the first 30 training images"
    assert (len(batches.training_indices), batches.steps_per_epoch) == (20, 4)
    with pytest.raises(ValueError, match="data: images: wanted 1 … 40, got 41"):
        DataConfig(images=41).batches(0, "cpu")
