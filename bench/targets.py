"""What the fused CPU operations must reach, and whether a record of `bench/peers.py` reaches it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.contestants import PEERS
from bench.harness import Interval
from bench.passes import RECALIBRATION_PASS, SCORING_PASS, TRAINING_STEP, samples_of

NCHW, CHANNELS_LAST = "stock_nchw", "stock_channels_last"
ALL = ("full", "no_zero", "only_conv", "macro")
NB201 = ALL[:3]


@dataclass(frozen=True)
class Target:
    """A bound on one number of each of some networks.

    Attributes:
        what: a pass, or "saved for backward".
        networks: of which it is asked.
        name: whose time or bytes.
        base: what they are compared with.
        must: the bound to reach: of a time the least speed-up over `base`, of bytes the largest
            part of `base`'s.
        aim: the bound to hope for.
    """

    what: str
    networks: tuple[str, ...]
    name: str
    base: str
    must: float
    aim: float | None = None


SAVED = "saved for backward"
SPLIT = "training step, split"
SPLIT_CONFIDENCE = 0.95

TARGETS = (
    Target(TRAINING_STEP, ("full", "no_zero"), "ours", CHANNELS_LAST, 2.0, 2.7),
    Target(TRAINING_STEP, ("full", "no_zero"), "ours", NCHW, 3.5, 5.0),
    Target(TRAINING_STEP, ("only_conv",), "ours", CHANNELS_LAST, 2.2, 3.0),
    Target(TRAINING_STEP, ("only_conv",), "ours", NCHW, 3.0, 4.2),
    Target(TRAINING_STEP, ("macro",), "ours", CHANNELS_LAST, 1.8, 2.5),
    Target(TRAINING_STEP, ("macro",), "ours", NCHW, 2.6, 3.6),
    Target(SCORING_PASS, ALL, "ours", CHANNELS_LAST, 2.0, 3.0),
    Target(RECALIBRATION_PASS, ALL, "ours", CHANNELS_LAST, 2.0, 3.0),
    Target(TRAINING_STEP, NB201, "ours_highest", CHANNELS_LAST, 1.3, 1.5),
    Target(TRAINING_STEP, ("macro",), "ours_highest", CHANNELS_LAST, 1.6, 2.2),
    Target(SAVED, ("full", "no_zero"), "ours", CHANNELS_LAST, 0.70),
    Target(SAVED, ("only_conv",), "ours", CHANNELS_LAST, 0.75),
    Target(SAVED, ("macro",), "ours", CHANNELS_LAST, 0.60),
    Target(SAVED, ("macro",), "ours_recompute", CHANNELS_LAST, 0.35),
    Target(SAVED, ALL, "ours_split", "ours", 1.0),
    Target(SPLIT, ALL, "ours_split", "ours", 1.01),
)
"""Speed-ups, parts of stock's memory, and what sets may cost."""


@dataclass(frozen=True)
class Outcome:
    """One target of one network, measured.

    Attributes:
        label: what is asked.
        network: of which network.
        must: the bound as printed, with its direction.
        aim: the better bound, or "".
        measured: the number and, of a time, its interval.
        met: "aim", "yes" or "no".
    """

    label: str
    network: str
    must: str
    aim: str
    measured: Interval
    met: str


def setting_for(record: Mapping[str, Any], network: str, what: str, rival: str) -> str:
    """The setting of malloc in which a rival is fastest, among those that the record has."""
    times: dict[str, float] = {
        setting: samples_of(content["networks"][network], what).mean_of_medians(rival)
        for setting, content in record["settings"].items()
    }
    return min(times, key=lambda setting: times[setting])


def outcomes(record: Mapping[str, Any]) -> list[Outcome]:
    """Every target of every network in the record."""
    measured = next(iter(record["settings"].values()))["networks"]
    return [
        _outcome(record, target, network)
        for target in TARGETS
        for network in target.networks
        if network in measured
    ]


def _outcome(record: Mapping[str, Any], target: Target, network: str) -> Outcome:
    if target.what == SAVED:
        # Counted, so the same under every setting.
        saved = next(iter(record["settings"].values()))["networks"][network]["saved"]
        value = saved[target.name] / saved[target.base]
        return _judged(network, target, Interval(value, value, value), at_most=True)
    timed = TRAINING_STEP if target.what == SPLIT else target.what
    rival = CHANNELS_LAST if target.what == SPLIT else target.base
    setting = setting_for(record, network, timed, rival)
    samples = samples_of(record["settings"][setting]["networks"][network], timed)
    if target.what != SPLIT:
        return _judged(network, target, samples.ratio(target.base, target.name), at_most=False)
    ratio = samples.ratio(target.name, target.base, SPLIT_CONFIDENCE)
    outcome = _judged(network, target, ratio, at_most=True)
    return replace(outcome, met="yes") if ratio.low <= 1 <= ratio.high else outcome


def _judged(network: str, target: Target, measured: Interval, *, at_most: bool) -> Outcome:
    sign = "≤" if at_most else "≥"
    ratio = f"{PEERS[target.name]} ÷ {PEERS[target.base]}"
    if not at_most:  # a speed-up: how many times as long the rival takes
        ratio = f"{PEERS[target.base]} ÷ {PEERS[target.name]}"
    label = f"{target.what}: {ratio}"

    def reaches(bound: float | None) -> bool:
        if bound is None:
            return False
        return measured.value <= bound if at_most else measured.value >= bound

    met = "aim" if reaches(target.aim) else "yes" if reaches(target.must) else "no"
    aim = "" if target.aim is None else f"{sign} {target.aim:.2f}"
    return Outcome(label, network, f"{sign} {target.must:.2f}", aim, measured, met)
