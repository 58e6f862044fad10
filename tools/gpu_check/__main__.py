"""Verifies and measures the CUDA kernels: `python -m tools.gpu_check --out DIR`.

Runs in a copied checkout with the library built, without network, on any Python and torch that the
library takes. A stage that has passed, or failed, is not run again; the same command goes on with
the others until all have a record. The exit code is 0 if all have passed, 1 if one has failed, 3 if
some are left. DIR/report.json has everything: it is all that a run on another machine needs to go
on, and what `python -m bench.figures --gpu` reads.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from tools.gpu_check import kit, plan
from tools.gpu_check.stage import LIMIT, Stage, run, write_json

ROOT = Path(__file__).resolve().parents[2]
LEAST = 60.0
"""Seconds left below which no stage is begun."""
LEFT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages that have no record yet."""
    options = _parse(arguments)
    folder: Path = options.out.resolve()
    restore(folder)
    end = time.monotonic() + options.seconds
    setting = _prepare(options, folder)
    runner = Runner(setting.folder, _fingerprint(setting), options.again, end)
    first = runner.record(plan.environment(setting))
    if first is None or first["status"] != "passed":
        return runner.report([plan.environment(setting)], first)
    planned = [
        stage for stage in plan.stages(setting, first["facts"]) if options.only in stage.name
    ]
    for together, stages in groupby(planned, plan.shares):
        with ThreadPoolExecutor(options.jobs if together else 1) as pool:
            list(pool.map(runner.record, stages))
    return runner.report([plan.environment(setting), *planned], first)


class Runner:
    """Runs stages, each once, and keeps their records.

    Args:
        folder: of the records.
        fingerprint: of what is checked; a record of anything else does not count.
        again: run those that failed once more.
        end: of the time, on the monotonic clock.
    """

    def __init__(self, folder: Path, fingerprint: str, again: bool, end: float) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.again = again
        self.end = end

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """The stage's record, the one that there is or a new one; None if no time is left."""
        kept = self.kept(stage)
        if kept is not None and (kept["status"] == "passed" or not self.again):
            return kept
        left = self.end - time.monotonic()
        if left < min(LEAST, stage.limit):
            return kept
        record = run(stage, self.folder, left) | {"fingerprint": self.fingerprint}
        cut = record["status"] == "out of time" and left < stage.limit
        print(f"{record['status']:12}{record['seconds']:7.1f} s  {stage.name}  {record['wrong']}")
        sys.stdout.flush()
        if cut:  # it may fit into the whole of another run
            return None
        write_json(self.path(stage), record)
        return record

    def kept(self, stage: Stage) -> dict[str, Any] | None:
        """The record of an earlier run, if it is of the same things."""
        if not self.path(stage).exists():
            return None
        record: dict[str, Any] = json.loads(self.path(stage).read_text(encoding="utf-8"))
        return record if record["fingerprint"] == self.fingerprint else None

    def path(self, stage: Stage) -> Path:
        """Of its record."""
        return self.folder / f"{stage.name}.json"

    def report(self, planned: Sequence[Stage], first: Mapping[str, Any] | None) -> int:
        """Writes what all stages have found, says what is left, and gives the exit code."""
        records = {stage.name: record for stage in planned if (record := self.kept(stage))}
        left = [stage.name for stage in planned if stage.name not in records]
        bad = [name for name, record in records.items() if record["status"] != "passed"]
        facts = first["facts"] if first is not None else {}
        content = {"environment": facts, "failed": bad, "left": left, "stages": records}
        write_json(self.folder.parent / "report.json", content)
        for name in bad:
            print(f"{records[name]['status']}: {name}: {records[name]['wrong']}")
        for file, reason in facts.get("without kernels", {}).items():
            print(f"not run: {file}: {reason}")
        print(f"{len(records) - len(bad)} stages passed, {len(bad)} FAILED, {len(left)} left")
        if bad:
            return 1
        return LEFT if left else 0


def restore(folder: Path) -> None:
    """The records of stages from a report, where that is all that there is."""
    stages = folder / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    report = folder / "report.json"
    if report.exists():
        for name, record in json.loads(report.read_text(encoding="utf-8"))["stages"].items():
            if not (stages / f"{name}.json").exists():
                write_json(stages / f"{name}.json", record)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m tools.gpu_check",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where records go")
    parser.add_argument(
        "--dry-run", action="store_true", help="on the emulator, with tiny shapes, to try this out"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="end after this time; no stage takes more than "
        + f"{LIMIT:.0f} (default: at the end)",
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="stages whose name contains this"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="stages of tests that share the GPU; benchmarks have it to themselves (default: 1)",
    )
    parser.add_argument("--again", action="store_true", help="run stages that failed once more")
    parser.add_argument(
        "--sample",
        type=float,
        default=1.0,
        help="the part of the tests that runs under compute-sanitizer (default: all)",
    )
    parser.add_argument(
        "--sanitizer",
        type=Path,
        metavar="PROGRAM",
        help="another compute-sanitizer than the kit's, such as that of the machine's own toolkit",
    )
    parser.add_argument("--kit", type=Path, default=kit.KIT, help="what gpu_check.kit has gathered")
    return parser.parse_args(arguments)


def _prepare(options: argparse.Namespace, folder: Path) -> plan.Setting:
    """Unpacks the kit, and lets the stages find it."""
    site = folder / "site"
    carried = kit.unpack(options.kit, site)
    sanitizer = options.sanitizer or carried
    paths = (str(ROOT), str(site), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    fragments = options.kit / "fragments"
    if options.dry_run:
        fragments = ROOT / "build" / "cmake" / "emulator" / "fragments"
    device = "emulated" if options.dry_run else "cuda"
    return plan.Setting(folder / "stages", device, fragments, sanitizer, options.sample)


def _fingerprint(setting: plan.Setting) -> str:
    """Of the kernels and of how they are checked: a record of others is worth nothing."""
    watched = setting.sanitizer is not None
    digest = hashlib.sha256(f"{setting.device} {setting.sample} {watched}".encode())
    for file in (ROOT / "cwkernels" / "_C.so", setting.fragments):
        digest.update(file.read_bytes() if file.exists() else b"none")
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
