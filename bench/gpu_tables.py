"""What a GPU has said, as Markdown: from the report of `python -m tools.gpu_check`.

`bench/results/gpu.json` is such a report, put there by `python -m bench.figures --gpu REPORT`. As
long as there is none, that is what the tables say.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.contestants import PEERS
from bench.harness import Interval, Machine
from bench.passes import PASSES, samples_of

Report = Mapping[str, Any]
NONE = "No whole report of `make gpu-check` has been kept yet; bench/results/gpu_h200_* have parts."
TOOLS = ("tests", "memcheck", "racecheck", "synccheck", "initcheck")


def verified(report: Report | None) -> str:
    """What was run where, and for each file of tests what came out."""
    if report is None:
        return NONE
    stages = report["stages"]
    files = sorted({name.split(".")[1] for name in stages if name.split(".")[0] in TOOLS})
    rows = [[file, *(_outcome(stages, tool, file) for tool in TOOLS)] for file in files]
    fragments = stages.get("fragments", {}).get("status", "not run")
    lines = [
        f"{where(report)}. Fragment tables: {fragments}.",
        table(["tests of", *TOOLS], rows),
    ]
    if report["left"]:
        lines.append(f"Not run yet: {len(report['left'])} stages.")
    return "\n\n".join(lines)


def steps(report: Report | None) -> str:
    """A step of each network and batch: ours, the floor, and the rivals."""
    if report is None:
        return NONE
    measured = {
        name.partition(".")[2]: stage["facts"]
        for name, stage in report["stages"].items()
        if name.startswith("peers.") and stage["status"] == "passed"
    }
    parts = [f"{where(report)}."]
    for name, record in measured.items():
        profiled = report["stages"].get(f"profile.{name}", {}).get("facts", {})
        parts.append(_peers(name, record, profiled))
    return "\n\n".join(parts)


def kernels(report: Report | None) -> str:
    """Each operation at the networks' shapes."""
    if report is None:
        return NONE
    record = report["stages"].get("kernels", {}).get("facts", {})
    rows = [
        [
            row["shape"],
            row["direction"],
            f"{1e3 * row['milliseconds']:.1f} µs",
            f"×{_spread(row['ratio'])}",
            f"{row['rate']:.0f} {row['unit']}",
        ]
        for row in record.get("rows", [])
    ]
    header = ["operation and shape", "direction", "ours", "ours ÷ stock channels-last", "rate"]
    return f"{where(report)}, batch {record.get('batch')}.\n\n{table(header, rows)}"


def where(report: Report) -> str:
    """Card, driver, date, and the commit of the library."""
    found = report["environment"]
    machine = dict(found["machine"]) | {"commit": found["library"]["commit"]}
    return Machine(**machine).line().replace(" · ", ", ")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _outcome(stages: Mapping[str, Any], tool: str, file: str) -> str:
    parts = [stage for name, stage in stages.items() if name.split(".")[:2] == [tool, file]]
    if not parts:
        return "not run"
    wrong = [stage["wrong"] for stage in parts if stage["status"] != "passed"]
    passed = sum(stage["facts"].get("passed", 0) for stage in parts)
    return f"FAILED: {wrong[0]}" if wrong else f"{passed} passed"


def _peers(name: str, record: Mapping[str, Any], profiled: Mapping[str, Any]) -> str:
    network, _, batch = name.partition(".")
    content = record["settings"]["default"]["networks"][network]
    contestants = list(next(iter(content["passes"].values())))
    rows = [[PEERS[who], *(_cell(content, what, who) for what in PASSES)] for who in contestants]
    heading = table([f"{network}, batch {batch}", *PASSES], rows)
    if not profiled:
        return heading
    reached = (
        f"One architecture's step: {1e3 * profiled['seconds']:.3f} ms, "
        f"{profiled['seconds'] / profiled['floor_seconds']:.2f} times the floor, "
        f"{profiled['bytes_per_second'] / 1e12:.2f} TB/s, "
        f"{len(profiled['kernels'])} kernels by name."
    )
    return f"{heading}\n\n{reached}"


def _cell(content: Mapping[str, Any], what: str, who: str) -> str:
    samples = samples_of(content, what)
    if who == "ours":
        return f"{1e3 * samples.mean_of_medians(who):.3f} ms"
    return f"×{_spread(samples.ratio(who, 'ours'))}"


def _spread(interval: Interval | Mapping[str, float]) -> str:
    value = interval if isinstance(interval, Interval) else Interval(**interval)
    return f"{value.value:.2f} [{value.low:.2f}–{value.high:.2f}]"
