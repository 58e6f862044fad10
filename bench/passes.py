"""What `bench/peers.py` measures of one network: a step, two passes without gradients, bytes saved.

`measure` runs in a process of its own for each setting of malloc; what it returns is plain types,
and `samples_of` reads them back.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from statistics import fmean
from typing import Any

import torch

from bench import memory
from bench.contestants import PEERS, Contestant, build, runs_bf16, space_of
from bench.experiment import Batch
from bench.graphed import Replay, captured, pass_of_all, step_of_all
from bench.harness import Action, Samples, interleave

TRAINING_STEP = "training step"
SCORING_PASS = "scoring pass"
RECALIBRATION_PASS = "recalibration pass"
PASSES: Mapping[str, bool] = {TRAINING_STEP: True, SCORING_PASS: False, RECALIBRATION_PASS: True}
"""What is timed, and whether the network is in training mode then.

A step is forward, loss, backward and optimizer; scoring is the forward pass in evaluation without
gradients; recalibration that in training mode, which updates running statistics.
"""
SEED = 0
ONE_FOR_ALL = ("ours_graphed", "ours_graphed_bf16")
"""Those whose one graph replays for every architecture."""
ARCHITECTURES_SAVED = 16
"""Bytes are counted, not timed, so that more architectures than are timed fit in seconds."""


def contestants_of(network: str, device: torch.device, *, compiled: bool) -> tuple[str, ...]:
    """Who takes part in the timing on this device."""
    absent = {"ours_recompute"} if network != "macro" else set()
    absent |= set() if compiled else {"stock_compiled"}
    absent |= set() if runs_bf16(device) else {"stock_bf16"}
    absent |= set() if device.type == "cuda" else {*ONE_FOR_ALL, "ours_bf16", "stock_graphed"}
    return tuple(name for name in PEERS if name not in absent)


def measure(network: str, batches: list[Batch], *, rounds: int, compiled: bool) -> dict[str, Any]:
    """All passes of one network.

    Args:
        network: one of `NETWORKS`.
        batches: one for each architecture.
        rounds: timed rounds of each pass.
        compiled: also time `torch.compile` of each candidate.
    """
    torch.manual_seed(SEED)
    device = batches[0].images.device
    generator = torch.Generator().manual_seed(SEED)
    architectures = space_of(network).sample(len(batches), generator=generator)
    contestants = {
        name: build(name, network, device)
        for name in contestants_of(network, device, compiled=compiled)
    }
    passes = {}
    for name, training in PASSES.items():
        for contestant in contestants.values():
            contestant.network.train(training)
        one_for_all = _one_for_all(contestants, name, batches[0], architectures[0])
        cases = [
            {
                peer: _captured_if(
                    peer == "stock_graphed", _action(contestant, name, batch, architecture), device
                )
                for peer, contestant in contestants.items()
                if peer not in ONE_FOR_ALL
            }
            | {peer: partial(replay, architecture) for peer, replay in one_for_all.items()}
            for batch, architecture in zip(batches, architectures, strict=True)
        ]
        description = f"{network}, {name}"
        passes[name] = interleave(
            cases, rounds=rounds, device=device, description=description
        ).seconds
    return {
        "architectures": architectures.tolist(),
        "passes": passes,
        "saved": count_saved(network, batches[0]),
    }


def samples_of(measured: Mapping[str, Any], name: str) -> Samples:
    """The samples of a pass in what `measure` returned, also after its way through JSON."""
    seconds: Mapping[str, Iterable[Iterable[float]]] = measured["passes"][name]
    return Samples({peer: tuple(map(tuple, cases)) for peer, cases in seconds.items()})


def count_saved(
    network: str, batch: Batch, architectures: int = ARCHITECTURES_SAVED
) -> dict[str, float]:
    """Bytes saved for backward by contestant, the mean over random architectures of a fixed seed.

    Storages that are no parameters, buffers or inputs, each once.
    """
    names = ["ours", "ours_split", "stock_channels_last"]
    names += ["ours_recompute"] if network == "macro" else []
    generator = torch.Generator().manual_seed(SEED)
    drawn = space_of(network).sample(architectures, generator=generator)
    contestants = {name: build(name, network, batch.images.device) for name in names}
    return {
        name: fmean(_saved(contestant, batch, architecture) for architecture in drawn)
        for name, contestant in contestants.items()
    }


def _saved(contestant: Contestant, batch: Batch, architecture: torch.Tensor) -> int:
    images = batch.images.contiguous(memory_format=contestant.memory_format)
    parts = chain(
        contestant.network.parameters(), contestant.network.buffers(), (images, batch.labels)
    )
    return memory.saved_bytes(lambda: contestant.loss(images, batch.labels, architecture), parts)


def _one_for_all(
    contestants: Mapping[str, Contestant], name: str, batch: Batch, architecture: torch.Tensor
) -> dict[str, Replay]:
    """The one graph of a pass that replays for every architecture, where it takes part."""
    capture = step_of_all if name == TRAINING_STEP else pass_of_all
    return {
        peer: capture(contestant, batch, architecture)
        for peer, contestant in contestants.items()
        if peer in ONE_FOR_ALL
    }


def _captured_if(graphed: bool, action: Action, device: torch.device) -> Action:
    return captured(action, device) if graphed else action


def _action(contestant: Contestant, name: str, batch: Batch, architecture: torch.Tensor) -> Action:
    images = batch.images.contiguous(memory_format=contestant.memory_format)
    if name == TRAINING_STEP:
        return lambda: contestant.step(images, batch.labels, architecture)
    return lambda: contestant.infer(images, architecture)
