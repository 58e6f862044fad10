"""`cwkernels train`: a run from a TOML file, or one that goes on."""

import argparse
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cwkernels.training import (
    Callback,
    Config,
    ProgressBar,
    Run,
    TensorBoard,
    create_run,
    load_run,
)
from cwkernels.training.run import CONFIG


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("config", nargs="?", type=Path, help="a TOML file; without: the defaults")
    parser.add_argument("--run", type=Path, help="the directory that the run writes")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="a value in place of the file's, in TOML: --set recipe.epochs=10; may be repeated",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --run if there is one, bitwise as if it had not been cut",
    )
    parser.add_argument(
        "--show-config", action="store_true", help="print the whole config as TOML and stop"
    )


def run(options: argparse.Namespace) -> int:
    """Trains; 0 once the last epoch is done."""
    config = _config(options.config, options.set)
    if options.show_config:
        print(config.to_toml(), end="")
        return 0
    if options.run is None:
        raise ValueError("train: --run: wanted a directory for the run, got none")
    going_on = options.resume and (options.run / CONFIG).exists()
    given = options.config is not None or options.set
    directory = load_run(options.run) if going_on else create_run(options.run, config)
    if going_on and given and config.resolved() != directory.config.resolved():
        raise ValueError(f"train: --resume: wanted the config of {options.run}, got another one")
    with directory.locked():
        _train(directory)
    return 0


def _train(directory: Run) -> None:
    batches = directory.batches()
    print(f"cwkernels train: {directory.path}: {batches.source}")
    callbacks: list[Callback] = [ProgressBar()]
    if directory.config.run.tensorboard:
        callbacks.append(TensorBoard(directory.path / "tensorboard"))
    directory.trainer(callbacks, batches=batches).fit()
    for record in directory.metrics()[-1:]:
        print(f"cwkernels train: {record.line()}", end="")


def _config(path: Path | None, changes: Iterable[str]) -> Config:
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"train: {path}: wanted TOML, got: {error}") from error
    for change in changes:
        _apply(tables, change)
    return Config.from_mapping(tables)


def _apply(tables: dict[str, Any], change: str) -> None:
    """Puts one TABLE.KEY=VALUE into the tables; a value that is no TOML is a string."""
    name, equals, value = change.partition("=")
    table, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise ValueError(f"train: --set: wanted TABLE.KEY=VALUE, got {change!r}")
    try:
        own = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        own = value.strip()
    tables.setdefault(table, {})[key] = own
