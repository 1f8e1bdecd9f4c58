"""The function, the fixture, the command line: what they return, write and exit with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from neuromanifold_gpt.certify import Verdict, certify
from neuromanifold_gpt.certify.errors import CommandFailedError, PlanError

from .running import HERE, NUMPY

REPOSITORY = HERE.parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
SHORT = [*NUMPY, "--steps=20"]


def command_line(*options: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from neuromanifold_gpt.cli import main; sys.exit(main())", *options]


def test_the_function_gives_a_certificate_and_writes_the_report(tmp_path: Path):
    certificate = certify(SHORT, work=tmp_path / "work", at_steps=[12], signals=["TERM"], junit=tmp_path / "junit.xml")
    assert certificate.exact
    report = json.loads((tmp_path / "work/report.json").read_text())
    assert report["verdict"] == "EXACT"
    [interruption] = report["interruptions"]
    assert [attempt["exit_code"] for attempt in interruption["attempts"]] == [-15, 0]
    assert interruption["restarts"][0]["checkpoint_step"] == 10
    assert interruption["restarts"][0]["first_step"] == 11
    assert "--at-step 12 --signal TERM" in interruption["repeat"]
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "0")


@pytest.mark.parametrize(
    ("bug", "verdict", "exit_code", "junit"),
    [
        ("", Verdict.EXACT, 0, ("0", "0")),
        pytest.param("momentum", Verdict.DIVERGED, 1, ("1", "0"), marks=pytest.mark.slow),
        ("tiny_error", Verdict.EQUAL_WITHIN, 1, ("1", "0")),
    ],
)
def test_the_exit_code_tells_the_verdict(
    tmp_path: Path, bug: str, verdict: Verdict, exit_code: int, junit: tuple[str, str]
):
    again = f"{sys.executable} {HERE / 'numpy_program.py'} {{out}} --steps=20 --bug={bug}"
    options = ["certify", "--at-step", "12", "--work", str(tmp_path / "w"), "--junit", str(tmp_path / "j.xml")]
    run = subprocess.run(
        command_line(*options, "--resume-cmd", again, "--", *SHORT), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert run.returncode == exit_code, run.stderr
    assert f"1. SIGKILL at step 12: {'✓' if exit_code == 0 else '✗'} {verdict}" in run.stdout
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (suite.get("failures"), suite.get("errors")) == junit


def test_within_accepts_small_differences(tmp_path: Path):
    again = f"{sys.executable} {HERE / 'numpy_program.py'} {{out}} --steps=20 --bug=tiny_error"
    options = ["certify", "--at-step", "12", "--work", str(tmp_path / "w"), "--within", "1e-6"]
    run = subprocess.run(
        command_line(*options, "--resume-cmd", again, "--", *SHORT), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert run.returncode == 0
    assert "EQUAL WITHIN" in run.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--", "python", "train.py"], "expected {out} in its arguments"),
        (["--at-step", "0", "--", "python", "{out}"], "expected positive numbers"),
        (["--", "no-such-program", "{out}"], "cannot be started"),
        (["--", sys.executable, "-c", "raise SystemExit('no data')", "{out}"], "no data"),
    ],
)
def test_what_cannot_be_certified_is_said_in_one_line(tmp_path: Path, options: list[str], words: str):
    run = subprocess.run(
        command_line("certify", "--work", str(tmp_path / "w"), *options),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr


def test_a_directory_that_is_not_its_own_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PlanError, match="expected an empty directory"):
        certify(SHORT, work=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_command_that_fails_by_itself_is_an_error(tmp_path: Path):
    with pytest.raises(CommandFailedError, match="exit code 3"):
        certify([sys.executable, "-c", "raise SystemExit(3)", "{out}"], work=tmp_path / "w")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_process_behind(tmp_path: Path, number: signal.Signals):
    note = tmp_path / "child"
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} ')\n"
        "time.sleep(60)\n"
    )
    options = ["certify", "--work", str(tmp_path / "w"), "--", sys.executable, "-c", script, "{out}"]
    certifying = subprocess.Popen(command_line(*options), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not (note.exists() and note.read_text().count(" ") == 2):
        assert certifying.poll() is None
        time.sleep(0.01)
    certifying.send_signal(number)
    assert certifying.wait(30) == 128 + number
    for pid in note.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z", "a process was left behind"


PROJECT_TEST = """
import sys

COMMAND = [sys.executable, {program!r}, "{{out}}", "--steps=20"]


def test_exact(certify_resume):
    certificate = certify_resume(COMMAND, at_steps=[12])
    assert certificate.interrupted[0].restarts[0].first_step == 11


def test_diverges(certify_resume):
    certify_resume(COMMAND, resume_command=[*COMMAND, "--bug=scheduler"], at_steps=[12])
"""


def test_the_fixture_holds_another_project_to_it(tmp_path: Path):
    (tmp_path / "test_project.py").write_text(PROJECT_TEST.format(program=str(HERE / "numpy_program.py")))
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
        ],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert "1 failed, 1 passed" in run.stdout, run.stdout
    assert "First went: learning-rate scheduler" in run.stdout
    assert "that of step 12, 1 steps ahead" in run.stdout


def test_the_plugin_costs_a_pytest_that_does_not_use_it_no_torch(tmp_path: Path):
    (tmp_path / "test_project.py").write_text(
        "import sys\n\n\ndef test_is_light(certify_resume):\n    assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert "1 passed" in run.stdout, run.stdout
