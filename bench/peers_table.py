"""The printed results of `bench/peers.py`, as text and as Markdown, all from its record."""

import textwrap
from collections.abc import Mapping
from typing import Any

from bench.contestants import PEERS
from bench.harness import Interval, Machine
from bench.options import NETWORKS
from bench.passes import PASSES, samples_of
from bench.targets import CHANNELS_LAST, Outcome, outcomes, setting_for
from cwkernels.report.paper import TABLE_1

LABEL_WIDTH = 36
COLUMN_WIDTH = 24
TEXT_WIDTH = 108
MARKS = {"default": "d", "keeping": "k"}
_BASIS = """\
A step is forward, loss, backward and optimizer; a scoring pass is the forward pass in evaluation
without gradients, a recalibration pass that in training mode. Each is the mean over {architectures}
random architectures of the median over {rounds} rounds, in which the contestants take turns in both
orders. ×: how many times as long as cwkernels it takes; brackets: 10–90 %, by bootstrap over the
rounds. All ran under malloc's default settings (d) and again keeping memory (k: {keeping}); a
rival is compared in the one in which it is faster, which the letter names."""


def text(record: Mapping[str, Any]) -> str:
    """All tables."""
    networks = networks_of(record)
    parts = [heading(record), basis(record)]
    parts += [_network_text(record, network) for network in networks]
    parts += [_saved_text(record), _targets_text(record)]
    return "\n\n".join(parts)


def networks_of(record: Mapping[str, Any]) -> list[str]:
    """The networks in the record, in the usual order."""
    measured = next(iter(record["settings"].values()))["networks"]
    return [network for network in NETWORKS if network in measured]


def heading(record: Mapping[str, Any]) -> str:
    """Machine, commit and batch."""
    return f"{Machine(**record['machine']).line()} · batch {record['batch']}"


def basis(record: Mapping[str, Any]) -> str:
    """How the times came about."""
    first = next(iter(next(iter(record["settings"].values()))["networks"].values()))
    keeping = " ".join(f"{k}={v}" for k, v in record["malloc"].get("keeping", {}).items())
    filled = _BASIS.format(
        architectures=len(first["architectures"]),
        rounds=record["rounds"],
        keeping=keeping or "not run",
    )
    return textwrap.fill(filled, TEXT_WIDTH)


def cell(record: Mapping[str, Any], network: str, what: str, contestant: str) -> str:
    """Our time, or a contestant's time over ours with its spread and setting of malloc."""
    rival = CHANNELS_LAST if contestant.startswith("ours") else contestant
    setting = setting_for(record, network, what, rival)
    samples = samples_of(record["settings"][setting]["networks"][network], what)
    if contestant == "ours":
        return f"{1000 * samples.mean_of_medians('ours'):.1f} ms {MARKS[setting]}"
    return f"×{_spread(samples.ratio(contestant, 'ours'))} {MARKS[setting]}"


def contestants_of(record: Mapping[str, Any], network: str) -> list[str]:
    """Who was timed on this network."""
    first = next(iter(record["settings"].values()))["networks"][network]
    return list(next(iter(first["passes"].values())))


def title(network: str) -> str:
    """The network's name in tables."""
    return "Macro" if network == "macro" else f"NAS-Bench-201, {TABLE_1[network].title}"


def measured(outcome: Outcome) -> str:
    """The number, with its interval if it is a time."""
    interval = outcome.measured
    exact = interval.low == interval.value == interval.high
    return f"{interval.value:.3f}" if exact else _spread(interval)


def _network_text(record: Mapping[str, Any], network: str) -> str:
    lines = [f"{title(network):<{LABEL_WIDTH}}" + "".join(f"{p:>{COLUMN_WIDTH}}" for p in PASSES)]
    for contestant in contestants_of(record, network):
        cells = "".join(
            f"{cell(record, network, what, contestant):>{COLUMN_WIDTH}}" for what in PASSES
        )
        lines.append(f"  {PEERS[contestant]:<{LABEL_WIDTH - 2}}{cells}")
    return "\n".join(lines)


def saved_bytes(record: Mapping[str, Any], network: str) -> dict[str, float]:
    """Bytes saved for backward by contestant; counted, so the same under every setting."""
    first = next(iter(record["settings"].values()))["networks"][network]
    return dict(first["saved"])


def _saved_text(record: Mapping[str, Any]) -> str:
    lines = ["Saved for backward, MiB, the mean over random architectures of a fixed seed"]
    for network in networks_of(record):
        lines.append(title(network))
        lines += [
            f"  {PEERS[name]:<{LABEL_WIDTH - 2}}{size / 2**20:>{COLUMN_WIDTH}.1f}"
            for name, size in saved_bytes(record, network).items()
        ]
    return "\n".join(lines)


def _targets_text(record: Mapping[str, Any]) -> str:
    form = "{:<73}{:<19}{:>8}{:>8}{:>19}  {}".format
    lines = [form("Targets", "", "must", "aim", "measured", "reached")]
    for outcome in outcomes(record):
        network = title(outcome.network).removeprefix("NAS-Bench-201, ")
        lines.append(
            form(
                outcome.label,
                network,
                outcome.must,
                outcome.aim,
                measured(outcome),
                outcome.met,
            )
        )
    return "\n".join(lines)


def _spread(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}–{interval.high:.2f}]"
