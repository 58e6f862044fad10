"""A run as data: network, images, recipe and settings, from TOML and back."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from cwkernels import networks, requires, spaces
from cwkernels.data import Batches, load_cifar10
from cwkernels.networks import SuperNetwork
from cwkernels.ops.precision import Precision
from cwkernels.training.recipe import RECIPES, Recipe

Options = TypeVar("Options")


@dataclass(frozen=True)
class NetworkConfig:
    """Which super-network.

    Attributes:
        name: "nb201" or "macro".
        subset: of NAS-Bench-201: "full", "no_zero" or "only_conv".
        channels, cells_per_stage, skip_projection, count_include_pad: see `cw.networks.nb201`,
            which alone has them.
        recompute: see `cw.networks.macro`, which alone has it.
        reserve: see either.

    Raises:
        ValueError: if an option is set that the network does not have.
    """

    name: Literal["nb201", "macro"] = "nb201"
    subset: Literal["full", "no_zero", "only_conv"] = "full"
    channels: int = 16
    cells_per_stage: int = 2
    skip_projection: bool = False
    count_include_pad: bool = False
    recompute: bool = False
    reserve: bool = False

    def __post_init__(self) -> None:
        """Checks."""
        foreign = ("recompute",) if self.name == "nb201" else _OF_NB201
        defaults = {own.name: own.default for own in dataclasses.fields(self)}
        for name in foreign:
            if getattr(self, name) != defaults[name]:
                wanted = f"nothing for the network {self.name}"
                got = getattr(self, name)
                raise ValueError(f"network: {name}: wanted {wanted}, got {got!r}")

    def build(self) -> SuperNetwork:
        """A network with weights from torch's generator, on torch's default device."""
        if self.name == "macro":
            return networks.macro(recompute=self.recompute, reserve=self.reserve)
        options = {name: getattr(self, name) for name in _OF_NB201[1:]}
        return networks.nb201(spaces.nb201(self.subset), reserve=self.reserve, **options)


_OF_NB201 = ("subset", "channels", "cells_per_stage", "skip_projection", "count_include_pad")


@dataclass(frozen=True)
class DataConfig:
    """Which images.

    Attributes:
        root: see `cw.data.load_cifar10`; None: where that looks by itself.
        images: how many of the training images there are, the first ones; None: all.
        validation: how many of them validate.
        batch_size: images in a batch.
    """

    root: str | None = None
    images: int | None = None
    validation: int = 5_000
    batch_size: int = 256

    def batches(self, seed: int, device: str) -> Batches:
        """The run's batches; their `source` says where the images come from."""
        data = load_cifar10(self.root)
        stored = len(data.train_labels)
        if self.images is not None:
            if not 1 <= self.images <= stored:
                raise ValueError(f"data: images: wanted 1 … {stored}, got {self.images}")
            data = dataclasses.replace(
                data,
                train_images=data.train_images[: self.images],
                train_labels=data.train_labels[: self.images],
                source=f"{data.source}, the first {self.images} training images",
            )
        return Batches(
            data,
            seed=seed,
            batch_size=self.batch_size,
            validation=self.validation,
            device=device,
        )


@dataclass(frozen=True)
class RunConfig:
    """How and where it runs.

    Attributes:
        seed: of weights, images, augmentation and architectures; the paper's are 0 … 9.
        device: torch's name of it.
        threads: of torch; None: as many as it takes by itself.
        precision: see `cw.set_float32_conv_precision`.
        checkpoint_seconds: between checkpoints within an epoch; each epoch and split ends with one.
        tensorboard: write event files.
        graphed: whether a step is one CUDA graph (`cw.training.GraphedStep`), which gives the bits
            of one by ordinary calls; None: on a GPU. A network without `reserve` is captured again
            after each split. Without CUDA such a step runs as it is.

    Raises:
        ValueError: for a number out of range.
    """

    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    precision: Precision = "high"
    checkpoint_seconds: float = 300.0
    tensorboard: bool = False
    graphed: bool | None = None

    def __post_init__(self) -> None:
        """Checks."""
        for name, least in (("seed", 0), ("threads", 1), ("checkpoint_seconds", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"run: {name}: wanted at least {least}, got {value}")


@dataclass(frozen=True)
class Config:
    """A run: the four tables of its TOML file."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def from_mapping(cls, tables: Mapping[str, Any]) -> "Config":
        """A config from tables as TOML or JSON have them; what is absent takes its default.

        In the table ``recipe`` the key ``base`` names the recipe whose values are the defaults.

        Raises:
            ValueError: for an unknown table or key, or a value of another type, with its name.
        """
        tables = dict(tables)
        recipe = dict(_table("recipe", tables.get("recipe", {})))
        base = recipe.pop("base", "default")
        if base not in RECIPES:
            wanted = " or ".join(map(repr, RECIPES))
            raise ValueError(f"config: recipe.base: wanted {wanted}, got {base!r}")
        defaults = {
            own.name: getattr(RECIPES[base], own.name) for own in dataclasses.fields(Recipe)
        }
        given = {key: value for key, value in defaults.items() if key != "splits"} | recipe
        config: Config = _build(cls, tables | {"recipe": given}, "")
        return config

    def to_toml(self) -> str:
        """All of it, defaults too, as TOML that `from_mapping` takes once parsed.

        Raises:
            ImportError: without tomli-w.
        """
        writer = requires.module("tomli_w", "Config.to_toml")
        return "\n".join(
            writer.dumps({name: _without_none(table)}) + _none_comments(table)
            for name, table in dataclasses.asdict(self).items()
        )

    def resolved(self) -> "Config":
        """The same with what is chosen for it written down: threads, and how a step runs."""
        run = self.run
        threads = torch.get_num_threads() if run.threads is None else run.threads
        on_gpu = torch.device(run.device).type == "cuda"
        graphed = on_gpu if run.graphed is None else run.graphed
        return dataclasses.replace(
            self, run=dataclasses.replace(run, threads=threads, graphed=graphed)
        )


def _without_none(value: Any) -> Any:
    """TOML has no null: what is absent is None."""
    if isinstance(value, Mapping):
        return {key: _without_none(own) for key, own in value.items() if own is not None}
    return [_without_none(own) for own in value] if isinstance(value, list | tuple) else value


def _none_comments(table: Mapping[str, Any]) -> str:
    return "".join(f"# {key} is not set\n" for key, value in table.items() if value is None)


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"config: {name}: wanted a table, got {value!r}")
    return value


def _build(cls: type[Options], table: Any, name: str) -> Options:
    """A dataclass from a table, each value checked against the type of its field."""
    hints = get_type_hints(cls)
    prefix = f"{name}." if name else ""
    for key in _table(name, table):
        if key not in hints:
            wanted = f"one of {', '.join(hints)}"
            raise ValueError(f"config: {prefix}{key}: wanted {wanted}, got an unknown key")
    return cls(**{key: _value(hints[key], own, prefix + key) for key, own in table.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, name)
    if origin is UnionType:
        return None if value is None else _value(arguments[0], value, name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(arguments[0], own, f"{name}[{i}]") for i, own in enumerate(value))
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(f"config: {name}: wanted {_wanted(hint)}, got {value!r}")


def _wanted(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return "a list"
    return {int: "an integer", float: "a number", str: "a string", bool: "true or false"}[hint]
