"""Everything that a run consists of, as tensors and facts, out of a trainer and back into one."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from cwkernels._version import __version__
from cwkernels.ops import set_float32_conv_precision
from cwkernels.ops._library import build_config
from cwkernels.ops.precision import current_float32_conv_precision
from cwkernels.optim import SGD
from cwkernels.training.trainer import Trainer

SETTINGS = ("threads", "precision")
"""What of the environment a resume restores."""


@dataclass(frozen=True)
class State:
    """A run at one moment.

    Attributes:
        tensors: by name: weights with running statistics and set maps ("net."), momenta
            ("momentum."), averaged weights ("average."), what the epoch has measured ("epoch."),
            generators' states ("random."), and what first uses are remembered by ("first_use.").
        facts: JSON: the step, the epoch's seconds, and the environment.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def environment() -> dict[str, str | int]:
    """What besides the state decides which bits come out: settings, and versions of code."""
    return {
        "threads": torch.get_num_threads(),
        "precision": current_float32_conv_precision(),
        "cpu_isa": str(torch.ops.cwkernels.cpu_isa()),
        "torch": torch.__version__,
        "cwkernels": __version__,
        "commit": build_config()["commit"],
    }


def capture(trainer: Trainer) -> State:
    """The state of a trainer, its tensors still the trainer's own where they lie on the CPU."""
    tensors: dict[str, Tensor] = {}
    tensors |= _prefixed("net", trainer.net.state_dict())
    tensors |= _prefixed("momentum", _momenta(trainer.net, trainer.optimizer))
    if trainer.average is not None:
        tensors |= _prefixed("average", trainer.average.state_dict())
    if trainer.first_use is not None:
        tensors |= _prefixed(
            "first_use", {"live": trainer.first_use.live, "seen": trainer.first_use.seen}
        )
    tensors |= _prefixed("epoch", {"loss": trainer.loss, "correct": trainer.correct})
    tensors |= _prefixed("random", _random_states(trainer.batches.device))
    facts = {"step": trainer.step, "seconds": trainer.seconds, "environment": environment()}
    return State({name: own.detach().cpu().contiguous() for name, own in tensors.items()}, facts)


def restore(trainer: Trainer, state: State) -> None:
    """Puts a state into a fresh trainer of the same network, data and recipe.

    The number of threads and the precision of convolutions become those of the state, for the whole
    process. Other differences of the environment are a warning: the run goes on, but its bits may
    not be those of one run.

    Raises:
        ValueError, RuntimeError: if it is the state of another network or recipe.
    """
    _restore_environment(state.facts["environment"])
    trainer.net.load_state_dict(_part(state, "net"))
    _load_momenta(trainer.net, trainer.optimizer, _part(state, "momentum"))
    for part, own in (("average", trainer.average), ("first_use", trainer.first_use)):
        if bool(_part(state, part)) != (own is not None):
            got = "none" if own is not None else "one"
            raise ValueError(f"restore: state: wanted that of the recipe, got {got} of {part}")
    if trainer.average is not None:
        trainer.average.load_state_dict(_part(state, "average"))
    if trainer.first_use is not None:
        for name, remembered in _part(state, "first_use").items():
            getattr(trainer.first_use, name).copy_(remembered)
    for name, sum_ in _part(state, "epoch").items():
        getattr(trainer, name).copy_(sum_)
    _restore_random_states(_part(state, "random"), trainer.batches.device)
    trainer.step = int(state.facts["step"])
    trainer.seconds = float(state.facts["seconds"])


def network_state(state: State) -> dict[str, Tensor]:
    """What `load_state_dict` of the run's network takes."""
    return _part(state, "net")


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _part(state: State, prefix: str) -> dict[str, Tensor]:
    dotted = prefix + "."
    return {
        name.removeprefix(dotted): tensor
        for name, tensor in state.tensors.items()
        if name.startswith(dotted)
    }


def _momenta(net: nn.Module, optimizer: SGD) -> dict[str, Tensor]:
    return {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in net.named_parameters()
        if optimizer.has_trained(parameter)
    }


def _load_momenta(net: nn.Module, optimizer: SGD, momenta: Mapping[str, Tensor]) -> None:
    """By the optimizer's own `load_state_dict`, which numbers parameters group by group."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    loaded = {
        number: {"momentum_buffer": momenta[name]}
        for number, name in enumerate(order)
        if name in momenta
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": loaded, "param_groups": groups})


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Training itself draws from none of these; a callback or a module may."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _restore_environment(recorded: Mapping[str, str | int]) -> None:
    torch.set_num_threads(int(recorded["threads"]))
    precision = cast(Any, recorded["precision"])
    set_float32_conv_precision(precision)
    now = environment()
    changed = [
        f"{name} {recorded[name]} → {now[name]}"
        for name in now
        if name not in SETTINGS and now[name] != recorded[name]
    ]
    if changed:
        warnings.warn(
            f"the run goes on with other code, so maybe not bitwise: {', '.join(changed)}",
            stacklevel=3,
        )
