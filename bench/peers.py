"""A training step, a scoring pass and a recalibration pass of each network, beside its rivals.

Run it from the repository's root: `python -m bench.peers`. All is timed twice, each time in a
process of its own: under malloc's default settings and under settings that keep memory. A rival
counts in the one that suits it better.
"""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import experiment, passes, peers_table
from bench.devices import DEVICES, benchmark_device
from bench.harness import clocks, describe_machine, write_json
from bench.malloc import SETTINGS, measured_under
from bench.options import Parser, check_file, command_line
from bench.targets import outcomes

MODULE = "bench.peers"
SCHEMA = "cwkernels-peers-1"
_EXAMPLES = """\
examples:
  python -m bench.peers                                     all of it: some ten minutes
  python -m bench.peers --networks full --architectures 2 --rounds 2 --malloc keeping
  python -m bench.peers --json bench/results/peers_cpu.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure under each setting, print the tables and write JSON if asked for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.child is not None:
        write_json(options.child, run_here(options))
        return 0
    record = run_all(options, arguments)
    print(peers_table.text(record))
    if options.json is not None:
        write_json(options.json, record)
    return 0


def parse(arguments: Sequence[str]) -> Namespace:
    """The options; an error is one line and exit code 2."""
    parser = Parser(
        prog="peers",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    most = experiment.MAX_ARCHITECTURES
    parser.add_networks()
    parser.add_counts(
        (
            ("batch", 64, "images in a step"),
            ("architectures", most, f"random architectures, at most {most}"),
            ("rounds", 4, "timed rounds over the architectures, raised to an even number"),
            ("threads", 2, "threads, pinned"),
        )
    )
    parser.add_argument(
        "--malloc", choices=SETTINGS, help="one setting of malloc only (default: both)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also torch.compile of each candidate (a minute more for each network and setting)",
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where (cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples there")
    parser.add_argument("--child", type=Path, metavar="FILE", help="measure in this process only")
    options = parser.parse_args(arguments)
    check_file(parser, "--json", options.json)
    if options.architectures > most:
        parser.error(f"--architectures: wanted at most {most}, got {options.architectures}")
    if options.batch > experiment.TRAINING_IMAGES:
        wanted = f"an epoch has {experiment.TRAINING_IMAGES} images"
        parser.error(f"--batch: {wanted}, got {options.batch}")
    return options


def run_all(options: Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """The record: what a child measured under each setting of malloc, and what follows from it."""
    names = (options.malloc,) if options.malloc else tuple(SETTINGS)
    if options.device != "cpu":  # malloc has nothing to do there
        names = names[:1]
    settings = {name: measured_under(name, MODULE, arguments, options.threads) for name in names}
    machine = {name: content.pop("machine") for name, content in settings.items()}
    record = {
        "schema": SCHEMA,
        "command": command_line(MODULE, arguments),
        "machine": machine[names[0]],
        "device": options.device,
        "batch": options.batch,
        "rounds": options.rounds + options.rounds % 2,
        "malloc": {name: SETTINGS[name] for name in names},
        "settings": settings,
    }
    return record | {"targets": [asdict(outcome) for outcome in outcomes(record)]}


def run_here(options: Namespace) -> dict[str, Any]:
    """What this process measures, in plain types."""
    with benchmark_device(options.device) as device:
        batches, source = experiment.load_batches(options.batch, device)
        before = clocks(device)
        networks = {
            network: passes.measure(
                network,
                batches[: options.architectures],
                rounds=options.rounds,
                compiled=options.compile,
            )
            for network in options.networks
        }
        ran = [before, clocks(device)]
        machine = asdict(describe_machine(device))
    return {"machine": machine, "data": source, "clocks": ran, "networks": networks}


if __name__ == "__main__":
    sys.exit(main())
