"""From options to printed tables and files."""

import torch

import cwkernels as cw
from bench import experiment, table
from bench.devices import benchmark_device
from bench.experiment import NetworkResult
from bench.harness import Machine, describe_machine, write_json
from bench.options import Options
from bench.record import to_json


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line."""


def choose_device(wanted: str | None) -> tuple[torch.device, str]:
    """The device, and why it is that one where a GPU is passed over."""
    if not torch.cuda.is_available():
        if wanted == "cuda":
            raise UsageError("--device cuda: torch finds no usable GPU here")
        return torch.device("cpu"), ""
    if cw.ops.has_cuda_kernels():
        return torch.device(wanted or "cuda"), ""
    if wanted == "cuda":
        raise UsageError("--device cuda: cwkernels is built without kernels for the GPU here")
    return torch.device("cpu"), "The GPU is passed over: cwkernels is built without kernels for it."


def run(options: Options) -> None:
    """Measure, print and write what the options ask for; UsageError for what cannot be done."""
    if options.device == "emulated":
        name, note = options.device, ""
    else:
        chosen, note = choose_device(options.device)
        name = chosen.type
    with benchmark_device(name) as device:
        _run(options, device, note)


def _run(options: Options, device: torch.device, note: str) -> None:
    batch = options.batch or (256 if device.type == "cuda" else 64)
    if batch > experiment.TRAINING_IMAGES:
        raise UsageError(f"--batch: an epoch has {experiment.TRAINING_IMAGES} images, got {batch}")
    machine = describe_machine(device)
    batches, source = experiment.load_batches(batch, device)
    print("What conditional weights cost, beside table 1 of the paper")
    print(f"{machine.line()} · batch {batch} · {device.type} · {source}")
    if note:
        print(note)
    results = {
        network: experiment.run_network(
            network,
            batches,
            steps=options.steps,
            with_processes=options.long and device.type == "cpu",
            description=network,
        )
        for network in options.networks
    }
    print(f"\n{table.table_1(results)}\n\n{table.basis(results)}")
    if options.long:
        print(f"\n{table.long_form(results)}")
    _write_files(options, machine, batch, source, results)


def _write_files(
    options: Options,
    machine: Machine,
    batch: int,
    source: str,
    results: dict[str, NetworkResult],
) -> None:
    if options.json is not None:
        write_json(options.json, to_json(machine, batch, source, results))
    if options.plot is not None:
        # matplotlib is needed for nothing else.
        from bench.plot import plot_overheads

        plot_overheads(results, machine.line(), options.plot)
