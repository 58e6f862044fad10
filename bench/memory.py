"""What a training step keeps in memory, part by part.

- parameters, momentum, running statistics: bytes of their storages, stored copies of the authors'
  way among them;
- gradients: those that are kept from one step to the next (none where they are dropped);
- inputs: images and labels;
- saved: what autograd saves for backward, seen by saved-tensor hooks and counted once per storage;
  parameters, buffers and inputs are not counted;
- pool: memory that our CPU operations keep from step to step for scratch and for large tensors,
  those saved for backward among them (`cw.workspace_bytes()` between two steps), which no allocator
  of PyTorch's sees: what steps take after a release;
- peak: what is resident before a step (all of the above but saved) and the most that a step has
  allocated on top of it: on a GPU from `max_memory_allocated`, on a CPU from a replay of
  the profiler's allocation events;
- workspace: the rest of the peak, which is temporaries of operations, scratch, gradients made so
  far in the step, what the pool holds idle, and what an operation hides from the saved-tensor
  hooks;
- process: VmHWM of a fresh process that does nothing but such steps, interpreter and PyTorch's own
  libraries among it. It alone sees memory that comes from elsewhere than all that.

`python -m bench.memory --child NETWORK CONTESTANT BATCH` is that fresh process; it prints bytes.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

import cwkernels as cw
from bench.contestants import Contestant, build, every_choice, heaviest_architecture
from bench.harness import unbound
from bench.stock_networks import AuthorsWay

RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of each part; `process` is None where no fresh process was run."""

    parameters: int
    momentum: int
    running_statistics: int
    gradients: int
    inputs: int
    saved: int
    pool: int
    workspace: int
    peak: int
    process: int | None = None


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each storage once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def saved_bytes(forward: Callable[[], Tensor], excluded: Iterable[Tensor]) -> int:
    """Bytes that autograd saves for the backward pass of `forward`'s result.

    Each storage counts once; storages of the excluded tensors do not count.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would be a reference cycle

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # alive until the end: a freed storage's address could come again
    del result
    return sum(saved.values())


def peak_allocation(action: Callable[[], object], device: torch.device) -> int:
    """The most bytes that were allocated during the action beyond those allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    return replayed_peak(allocations(action))


def allocations(action: Callable[[], object]) -> list[int]:
    """The bytes that an action allocates (positive) and releases (negative), in order; CPU only."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    result = profiler.profiler.kineto_results
    events = [event for event in result.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return [event.nbytes() for event in events]


def replayed_peak(changes: Iterable[int]) -> int:
    """The highest sum reached by allocations (positive) and releases (negative), at least 0."""
    allocated = peak = 0
    for change in changes:
        allocated += change
        peak = max(peak, allocated)
    return peak


def measure(
    contestant: Contestant,
    images: Tensor,
    labels: Tensor,
    architecture: Tensor,
    warm_up: Iterable[Tensor],
) -> MemoryUse:
    """The parts of one step, after steps that bring all momentum and the caches into being."""
    images = images.contiguous(memory_format=contestant.memory_format)
    cw.release_workspace()  # what contestants before this one took
    for each in (*warm_up, architecture):
        contestant.step(images, labels, each)
    network = contestant.network
    running, weights = _stored_copies(contestant)
    parameters = storage_bytes(chain(network.parameters(), weights))
    running_statistics = storage_bytes(
        chain((b for name, b in network.named_buffers() if _is_running(name)), running)
    )
    momentum = storage_bytes(_momentum(contestant.optimizer))
    gradients = storage_bytes(p.grad for p in network.parameters() if p.grad is not None)
    saved = saved_bytes(
        lambda: contestant.loss(images, labels, architecture),
        chain(network.parameters(), network.buffers(), (images, labels)),
    )
    inputs = storage_bytes((images, labels))
    pool = cw.workspace_bytes()
    step = peak_allocation(lambda: contestant.step(images, labels, architecture), images.device)
    return MemoryUse(
        parameters=parameters,
        momentum=momentum,
        running_statistics=running_statistics,
        gradients=gradients,
        inputs=inputs,
        saved=saved,
        pool=pool,
        workspace=pool + step - saved,
        peak=parameters + momentum + running_statistics + gradients + inputs + pool + step,
    )


def steps_of_measure(warm_up: Sequence[Tensor]) -> int:
    """About how many steps `measure` makes: the warm-up's, one more, one each to count."""
    return len(warm_up) + 3


def process_bytes(network: str, contestant: str, batch: int) -> int:
    """VmHWM of a fresh process that trains this contestant on the CPU."""
    command = [sys.executable, "-m", "bench.memory", "--child", network, contestant, str(batch)]
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with unbound():
        result = subprocess.run(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    return int(result.stdout)


def vm_hwm() -> int:
    """The largest resident set that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def run_child(network: str, name: str, batch: int) -> int:
    """Train for a few steps on images of noise, which cost what real ones cost; return VmHWM."""
    contestant = build(name, network, torch.device("cpu"))
    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=contestant.memory_format)
    labels = torch.arange(batch) % 10
    heaviest = heaviest_architecture(network)
    for architecture in (*every_choice(network), heaviest, heaviest):
        contestant.step(images, labels, architecture)
    return vm_hwm()


def _is_running(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in RUNNING_STATISTICS


def _momentum(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _stored_copies(contestant: Contestant) -> tuple[list[Tensor], list[Tensor]]:
    """Running statistics and weights in the stores of the authors' way."""
    network = contestant.network
    stored = list(network.stored_tensors()) if isinstance(network, AuthorsWay) else []
    running = [tensor for name, tensor in stored if _is_running(name)]
    return running, [tensor for name, tensor in stored if not _is_running(name)]


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] != "--child":
        sys.exit("usage: python -m bench.memory --child NETWORK CONTESTANT BATCH")
    print(run_child(sys.argv[2], sys.argv[3], int(sys.argv[4])))
