"""What the ends of the stages mean, read from what they print and write."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.gpu_check.stage import Finished, Verdict, by_exit_code

Judge = Callable[[Finished], Verdict]

NAMED = 20
"""Failed tests that a record names."""
_ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error")
_HAZARDS = re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warning")


def of_tests(report: Path) -> Judge:
    """Passed if tests ran and none failed; a run of none proves nothing."""

    def judge(finished: Finished) -> Verdict:
        if not report.exists():
            return Verdict(f"pytest wrote no report, exit code {finished.code}")
        facts = counts(report)
        if facts["failed"]:
            return Verdict(f"{facts['failed']} tests failed", facts)
        if not facts["passed"]:
            return Verdict("no test ran", facts)
        return Verdict(by_exit_code(finished).wrong, facts)

    return judge


def of_sanitizer(report: Path) -> Judge:
    """Passed if the tests did, and the tool has said that it found nothing."""

    def judge(finished: Finished) -> Verdict:
        tests = of_tests(report)(finished)
        found = findings(finished.output)
        facts = {**tests.facts, "findings": found}
        if found is None:
            return Verdict("compute-sanitizer gave no summary", facts)
        if found:
            return Verdict(f"compute-sanitizer found {found}", facts)
        return Verdict(tests.wrong, facts)

    return judge


def of_record(path: Path) -> Judge:
    """Passed if the command did and wrote its record, which becomes the facts."""

    def judge(finished: Finished) -> Verdict:
        if finished.code:
            return by_exit_code(finished)
        if not path.exists():
            return Verdict(f"it wrote no {path.name}")
        return Verdict("", json.loads(path.read_text(encoding="utf-8")))

    return judge


def counts(report: Path) -> dict[str, Any]:
    """Tests by outcome in a JUnit file, and the names of the first that failed."""
    passed = skipped = 0
    failed: list[str] = []
    for case in ElementTree.parse(report).iter("testcase"):
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in outcomes:
            skipped += 1
        else:
            passed += 1
    names = {"failures": failed[:NAMED]} if failed else {}
    return {"passed": passed, "failed": len(failed), "skipped": skipped, **names}


def findings(output: str) -> int | None:
    """Errors and hazards that compute-sanitizer counted; None where it gave no summary.

    There is a summary for each process that it watched.
    """
    errors = [int(count) for count in _ERRORS.findall(output)]
    hazards = [int(errors) + int(warnings) for _, errors, warnings in _HAZARDS.findall(output)]
    return sum(errors) + sum(hazards) if errors or hazards else None
