"""gpu-check: a stage's record says what happened, nothing that did not run has passed."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cwkernels.testing.emulated import LIBRARY
from tools.gpu_check import __main__ as gpu_check
from tools.gpu_check import environment, kit, plan, stand_in, verdicts
from tools.gpu_check.plan import Setting
from tools.gpu_check.stage import Finished, Stage, Verdict, run

JUNIT = '<testsuites><testsuite name="pytest">{}</testsuite></testsuites>'
PASSED = '<testcase classname="tests.a" name="one"/>'
FAILED = '<testcase classname="tests.a" name="two[cuda]"><failure message="no"/></testcase>'
BROKEN = '<testcase classname="tests.a" name="three"><error message="no"/></testcase>'
SKIPPED = '<testcase classname="tests.a" name="four"><skipped message="no"/></testcase>'
CLEAN = "========= ERROR SUMMARY: 0 errors\n"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def junit(folder: Path, *cases: str) -> Path:
    path = folder / "report.xml"
    path.write_text(JUNIT.format("".join(cases)))
    return path


@pytest.mark.parametrize(
    ("cases", "code", "wrong"),
    [
        ((PASSED, SKIPPED), 0, ""),
        ((PASSED, FAILED), 1, "1 tests failed"),
        ((PASSED, BROKEN, FAILED), 1, "2 tests failed"),
        ((SKIPPED,), 0, "no test ran"),
        ((), 5, "no test ran"),
        ((PASSED,), 3, "exit code 3: said"),
    ],
)
def test_tests_have_passed_only_if_some_ran_and_none_failed(
    tmp_path: Path, cases: tuple[str, ...], code: int, wrong: str
) -> None:
    verdict = verdicts.of_tests(junit(tmp_path, *cases))(Finished(code, "all\nsaid\n"))
    assert verdict.wrong == wrong
    assert verdict.facts["passed"] == cases.count(PASSED)
    if FAILED in cases:
        assert "tests.a::two[cuda]" in verdict.facts["failures"]


def test_tests_without_a_report_have_failed(tmp_path: Path) -> None:
    verdict = verdicts.of_tests(tmp_path / "none.xml")(Finished(0, ""))
    assert verdict.wrong == "pytest wrote no report, exit code 0"


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("1 passed", None),
        (CLEAN, 0),
        (CLEAN + "========= ERROR SUMMARY: 3 errors\n", 3),
        ("========= ERROR SUMMARY: 1 error\n", 1),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n", 3),
    ],
)
def test_what_a_sanitizer_found(tmp_path: Path, output: str, found: int | None) -> None:
    assert verdicts.findings(output) == found
    verdict = verdicts.of_sanitizer(junit(tmp_path, PASSED))(Finished(0, output))
    assert bool(verdict.wrong) == (found != 0)


def test_tests_that_fail_under_a_sanitizer_have_failed(tmp_path: Path) -> None:
    verdict = verdicts.of_sanitizer(junit(tmp_path, PASSED, FAILED))(Finished(1, CLEAN))
    assert verdict.wrong == "1 tests failed"


def test_a_record_of_a_stage(tmp_path: Path) -> None:
    code = "import os; print(os.environ['WORD'], os.getcwd(), sep='\\n')"
    record = run(Stage("a", python(code), environment={"WORD": "said"}), tmp_path, 60)
    assert record["status"] == "passed"
    assert record["tail"].splitlines() == ["said", str(gpu_check.ROOT)]
    record = run(Stage("b", python("raise SystemExit(4)")), tmp_path, 60)
    assert (record["status"], record["wrong"]) == ("FAILED", "exit code 4: it said nothing")


def test_a_stage_ends_at_its_limit_with_all_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, time;"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    record = run(Stage("slow", python(code), limit=2.0), tmp_path, 60)
    assert record["status"] == "out of time"
    assert record["seconds"] < 30
    deadline = time.monotonic() + 20
    while alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(pid.read_text()))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def runner(folder: Path, *, again: bool = False, seconds: float = 600) -> gpu_check.Runner:
    return gpu_check.Runner(folder, "print", again, time.monotonic() + seconds)


def counting(folder: Path, name: str, code: int = 0) -> Stage:
    """A stage that leaves a line each time it runs."""
    line = f"open({str(folder / 'ran')!r}, 'a').write('{name}\\n'); raise SystemExit({code})"
    return Stage(name, python(line))


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split()


def test_what_has_a_record_is_not_run_again(tmp_path: Path) -> None:
    stages = [counting(tmp_path, "good"), counting(tmp_path, "bad", 1)]
    for _ in range(2):
        for stage in stages:
            runner(tmp_path).record(stage)
    assert ran(tmp_path) == ["good", "bad"]
    for stage in stages:
        runner(tmp_path, again=True).record(stage)
    assert ran(tmp_path) == ["good", "bad", "bad"]


def test_a_record_of_another_library_does_not_count(tmp_path: Path) -> None:
    stage = counting(tmp_path, "good")
    runner(tmp_path).record(stage)
    gpu_check.Runner(tmp_path, "another", False, time.monotonic() + 600).record(stage)
    assert ran(tmp_path) == ["good", "good"]


def test_no_stage_begins_without_time_and_a_cut_one_is_left(tmp_path: Path) -> None:
    stage = counting(tmp_path, "good")
    assert runner(tmp_path, seconds=10).record(stage) is None
    assert not (tmp_path / "ran").exists()
    slow = Stage("slow", python("import time; time.sleep(60)"), limit=3.0)
    short = runner(tmp_path, seconds=600)
    short.end = time.monotonic() + 3.0  # enough to begin, too little for its limit
    assert short.record(slow) is None
    assert short.kept(slow) is None


def test_the_report_says_what_failed_and_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "stages"
    folder.mkdir()
    stages = [counting(tmp_path, "good"), counting(tmp_path, "bad", 1), counting(tmp_path, "left")]
    running = runner(folder)
    first = running.record(stages[0])
    assert running.report(stages[:1], first) == 0
    assert running.report(stages, first) == gpu_check.LEFT
    running.record(stages[1])
    assert running.report(stages, first) == 1
    assert "1 stages passed, 1 FAILED, 1 left" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["failed"], report["left"]) == (["bad"], ["left"])
    assert set(report["stages"]) == {"good", "bad"}


def test_the_runner_itself_needs_nothing_but_python() -> None:
    code = (
        "import sys, tools.gpu_check.__main__;"
        "names = {name.partition('.')[0] for name in sys.modules};"
        "print(sorted(names - set(sys.stdlib_module_names) - {'__main__', 'tools'}))"
    )
    # Without site-packages: what the machine lacks is unpacked by what is imported here.
    command = [sys.executable, "-S", "-c", code]
    said = subprocess.check_output(command, cwd=gpu_check.ROOT, text=True)
    assert said.strip() == "[]"


def test_a_report_is_enough_to_go_on(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    gpu_check.restore(there)
    good, other = counting(tmp_path, "good"), counting(tmp_path, "other")
    running = runner(there / "stages")
    running.report([good], running.record(good))
    here.mkdir()
    (there / "report.json").rename(here / "report.json")
    gpu_check.restore(here)
    going_on = runner(here / "stages")
    for stage in (good, other):
        going_on.record(stage)
    assert ran(tmp_path) == ["good", "other"]


def setting(folder: Path, **changes: Any) -> Setting:
    values: dict[str, Any] = {
        "folder": folder,
        "device": "cuda",
        "fragments": folder / "fragments",
        "sanitizer": Path("compute-sanitizer"),
        "sample": 1.0,
    }
    return Setting(**values | changes)


FACTS = {"tests": {"tests/ops/test_sgd.py": 130, "tests/ops/test_copy_rows.py": 40}}


def test_the_stages(tmp_path: Path) -> None:
    stages = {stage.name: stage for stage in plan.stages(setting(tmp_path), FACTS)}
    assert list(stages)[:4] == ["fragments", "tests.sgd.1", "tests.sgd.2", "tests.copy_rows.1"]
    for tool in plan.TOOLS:
        assert {n for n in stages if n.startswith(f"{tool}.sgd")} == {
            f"{tool}.sgd.{part}" for part in (1, 2, 3)
        }
        command = stages[f"{tool}.sgd.2"].command
        assert command[:3] == ("compute-sanitizer", "--tool", tool)
        assert "--part=2/3" in command
        assert stages[f"{tool}.sgd.2"].environment == plan.NO_CACHE
    for network in plan.NETWORKS:
        assert f"overhead.{network}" in stages
        for batch in plan.BATCHES:
            assert f"peers.{network}.{batch}" in stages
            assert f"profile.{network}.{batch}" in stages
    assert "--device" in stages["kernels"].command
    assert all(stage.limit < 600 for stage in stages.values())
    many = plan.stages(setting(tmp_path), {"tests": {"tests/ops/test_sgd.py": 250}})
    parts = [stage.command[-1] for stage in many if stage.name.startswith("tests.")]
    assert parts == ["--part=1/3", "--part=2/3", "--part=3/3"]


def test_a_dry_run_is_small_and_tries_the_options(tmp_path: Path) -> None:
    dry = setting(tmp_path, device="emulated")
    stages = {stage.name: stage for stage in plan.stages(dry, FACTS)}
    assert {name for name in stages if name.startswith("options.")} == {
        f"options.{tool}" for tool in plan.TOOLS
    }
    assert stages["options.memcheck"].command[0] == "compute-sanitizer"
    watched = [stage for name, stage in stages.items() if name.startswith("memcheck.")]
    assert [stage.name for stage in watched] == ["memcheck.sgd.1"]
    assert all(stage.command[:3] == plan.STAND_IN for stage in watched)
    assert "--part=1/43" in stages["tests.sgd.1"].command
    assert "--kernel-name" in plan.options_of("racecheck")
    assert "--kernel-name" not in plan.options_of("initcheck")


def test_a_sample_under_the_tools_has_fewer_parts(tmp_path: Path) -> None:
    stages = plan.stages(setting(tmp_path, sample=0.3), FACTS)
    watched = [stage for stage in stages if stage.name.startswith("memcheck.")]
    assert [stage.name for stage in watched] == ["memcheck.sgd.1", "memcheck.copy_rows.1"]
    assert all("--sample" in stage.command for stage in watched)


def test_a_sample_of_a_small_file_is_larger(tmp_path: Path) -> None:
    """With 4 % of ten tests most stages would have run none, which counts as failed."""
    facts = {"tests": {"tests/ops/test_a.py": 10, "tests/ops/test_b.py": 5}}
    stages = {stage.name: stage for stage in plan.stages(setting(tmp_path, sample=0.04), facts)}
    drawn = stages["memcheck.a.1"].command
    assert drawn[drawn.index("--sample") + 1] == "0.800"
    assert "--sample" not in stages["memcheck.b.1"].command


def test_without_the_sanitizer_its_stages_fail(tmp_path: Path) -> None:
    stages = plan.stages(setting(tmp_path, sanitizer=None), FACTS)
    stage = next(stage for stage in stages if stage.name == "racecheck.sgd.1")
    record = run(stage, tmp_path, 60)
    assert record["status"] == "FAILED"
    assert "not in the kit" in record["tail"]


def test_tests_on_a_device_are_those_with_an_operation(tmp_path: Path) -> None:
    with_one, without = tmp_path / "test_a.py", tmp_path / "test_b.py"
    with_one.write_text('OPERATION = "sgd"\n')
    without.write_text("def test_b(): pass\n")
    assert environment.operation_of(with_one) == "sgd"
    assert environment.operation_of(without) is None


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"device": "emulated", "tests": {}, "without kernels": {"a": "b"}}, "no operation has"),
        ({"device": "emulated", "tests": {"a": 1}}, ""),
        ({"device": "cuda", "gpus": [], "tests": {"a": 1}}, "finds no usable GPU"),
    ],
)
def test_what_is_missing(
    found: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    missing = environment.what_is_missing(found)
    assert message in missing
    assert bool(missing) == bool(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_says_so() -> None:
    found = environment.describe("cuda")
    assert environment.what_is_missing(found).endswith("finds no usable GPU")
    assert found["tests"] == {}
    assert found["without kernels"]


@pytest.mark.slow
@pytest.mark.skipif(not LIBRARY.exists(), reason=f"there is no {LIBRARY}: `make emulated`")
def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.gpu_check", "--out", str(tmp_path), "--dry-run"]
    command += ["--only", "fragments", "--kit", str(tmp_path / "no kit")]
    for _ in range(2):
        result = subprocess.run(
            command, cwd=gpu_check.ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout
        assert "2 stages passed, 0 FAILED, 0 left" in result.stdout
    assert "fragments  " not in result.stdout  # it had passed before
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["environment"]["device"] == "emulated"
    assert set(report["stages"]) == {"environment", "fragments"}


def test_a_library_that_does_not_run_on_the_gpu_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    gpus = [{"runs": False, "reason": "built for 80"}]
    found = {"device": "cuda", "gpus": gpus, "tests": {"a": 1}}
    assert environment.what_is_missing(found) == "the library does not run here: built for 80"


def wheel(folder: Path, name: str, *files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as content:
        for file in files:
            content.writestr(file, "#!/bin/sh\nexit 7\n")


def test_the_kit_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "kit" / "wheels"
    folder = "nvidia/cu13/compute-sanitizer"
    names = (f"{folder}/compute-sanitizer", f"{folder}/TreeLauncherSubreaper", f"{folder}/lib.so")
    wheel(wheels, "nvidia_cuda_sanitizer_api-13.0.85-py3-none-any.whl", *names)
    wheel(wheels, "missing_package-1-py3-none-any.whl", "missing_module.py")
    wheel(wheels, "pytest-1-py3-none-any.whl", "pytest.py")
    modules = {"missing_module": "missing-package", "pytest": "pytest"}
    monkeypatch.setattr(kit, "TEST_MODULES", modules)
    program = kit.unpack(tmp_path / "kit", tmp_path / "site")
    assert program is not None
    assert os.access(program, os.X_OK)
    assert os.access(program.with_name("TreeLauncherSubreaper"), os.X_OK)
    assert (tmp_path / "site" / "missing_module.py").exists()
    assert not (tmp_path / "site" / "pytest.py").exists()  # this Python has its own


def test_a_kit_without_the_sanitizer(tmp_path: Path) -> None:
    assert kit.unpack(tmp_path / "kit", tmp_path / "site") is None


def test_the_stand_in_runs_the_command_and_says_what_it_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = stand_in.main(["--tool", "memcheck", "--print-limit", "20", *python("exit(3)")])
    assert code == 3
    assert verdicts.findings(capfd.readouterr().out) == 0


def test_a_verdict_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    judge = verdicts.of_record(path)
    assert judge(Finished(0, "")) == Verdict("it wrote no facts.json")
    path.write_text('{"a": 1}')
    assert judge(Finished(0, "")) == Verdict("", {"a": 1})
    assert judge(Finished(2, "no")) == Verdict("exit code 2: no")
