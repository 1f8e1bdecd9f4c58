"""Programs of other styles: correct ones must be EXACT whatever they write, and nothing else may ever be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from neuromanifold_gpt.certify import Certificate, Verdict, certify

# A correct program that saves every 5th of 30 steps; {placeholders} make it one style or another.
PROGRAM = """
import csv, json, os, pickle, random, sys, time
from pathlib import Path

out = Path(sys.argv[1])
generator = random.Random(5)
weights, momentum, step = [0.1 * i for i in range(9)], [0.0] * 9, 0
{setup}
state = load()
if state is not None:
    weights, momentum, step = state["weights"], state["momentum"], state["step"]
    {restore}
{started}
while step < 30:
    noise = generator.gauss(0, 1)
    momentum = [0.9 * m + 0.1 * (w - noise) for m, w in zip(momentum, weights)]
    weights = [w - 0.05 * m for w, m in zip(weights, momentum)]
    step += 1
    loss = sum(w * w for w in weights)
    log(step, loss)
    time.sleep(0.005)
    if step % 5 == 0:
        save({{"weights": weights, "momentum": momentum, "step": step, "generator": generator.getstate()}})
{ended}
"""
RESTORE = "generator.setstate(tuple(tuple(v) if isinstance(v, list) else v for v in state['generator']))"

JSON_SAVES = """
def load():
    path = out / "state.json"
    return json.loads(path.read_text()) if path.exists() else None
def save(state):
    (out / "state.tmp").write_text(json.dumps({**state, **EXTRA}))
    os.replace(out / "state.tmp", out / "state.json")
EXTRA = {}
"""
PICKLE_SAVES = """
class Settings:
    def __init__(self): self.rate, self.started = 0.1, time.time()
def load():
    found = sorted(out.glob("save_*.pkl"))
    return pickle.loads(found[-1].read_bytes()) if found else None
def save(state):
    path = out / f"save_{state['step']:03d}.pkl"
    path.with_suffix(".part").write_bytes(pickle.dumps({**state, "settings": Settings()}))
    os.replace(path.with_suffix(".part"), path)
"""
JSONL = """
def log(step, loss):
    with open(out / "log.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": loss, "elapsed": time.time()}) + "\\n")
"""
PRINTED = """
def log(step, loss):
    print(f"step {step}: loss {loss:.6f}, {1000 * time.time() % 1000:.2f} ms")
"""
# Rows behind the checkpoint are cut off at a resume, as a careful program does.
CUT_CSV = """
def log(step, loss):
    with open(out / "metrics.csv", "a") as file:
        file.write(f"{step},{loss!r}\\n")
"""
CUT = """
lines = (out / "metrics.csv").read_text().splitlines() if (out / "metrics.csv").exists() else []
with open(out / "metrics.csv", "w") as file:
    file.write("step,loss\\n")
    for line in lines[1 : step + 1]:
        file.write(line + "\\n")
"""
# The whole history is in the checkpoint and is written anew at each step.
HISTORY = """
history = []
def log(step, loss):
    global history
    history = [row for row in history if row["step"] < step] + [{"step": step, "loss": loss}]
    (out / "history.tmp").write_text(json.dumps(history))
    os.replace(out / "history.tmp", out / "history.json")
"""
KEPT_HISTORY = 'history = [row for row in json.loads((out / "history.json").read_text()) if row["step"] <= step]'
# A new folder for each start, as Lightning's loggers make them.
VERSIONS = """
number = len(list(out.glob("version_*")))
(out / f"version_{number}").mkdir()
def log(step, loss):
    path = out / f"version_{number}" / "metrics.csv"
    new = not path.exists()
    with open(path, "a") as file:
        file.write("step,loss\\n" * new + f"{step},{loss!r}\\n")
"""
SILENT = "def log(step, loss): pass"


def program(tmp_path: Path, setup: str, restore: str = RESTORE, started: str = "", ended: str = "") -> list[str]:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(setup=setup, restore=restore, started=started, ended=ended))
    return [sys.executable, str(path), "{out}"]


def certified(tmp_path: Path, command: list[str], **options: object) -> Certificate:
    options = {"at_steps": [17], **options} if "at_random" not in options else options
    return certify(command, work=tmp_path / "work", second_look=False, stall_sec=20, **options)  # type: ignore[arg-type]


def told(certificate: Certificate) -> str:
    return "; ".join(f"{one.judgement} {one.diagnosis} {one.restarts}" for one in certificate.interrupted)


CORRECT = {
    "JSON state, JSON lines": {"setup": JSON_SAVES + JSONL},
    "pickles of its own classes, lines on stdout": {"setup": PICKLE_SAVES + PRINTED},
    "a CSV that is cut at each resume": {"setup": JSON_SAVES + CUT_CSV, "started": CUT},
    "a history that is written anew": {"setup": JSON_SAVES + HISTORY, "started": "if step: " + KEPT_HISTORY},
    "a new version folder for each start": {"setup": PICKLE_SAVES + VERSIONS},
    "times, hosts, counts of starts in its files": {
        "setup": JSON_SAVES + JSONL,
        "started": "EXTRA = {'saved_at': time.time(), 'host': os.uname().nodename, 'pid': os.getpid(),"
        " 'resumed': step > 0, 'attempt': 1 + bool(state), 'config': {'init_from': 'resume' if state else 'new'}}",
    },
    "checkpoints that are removed at the end": {
        "setup": PICKLE_SAVES + JSONL,
        "ended": "(out / 'final.json').write_text(json.dumps({'step': step, 'weights': weights}))\n"
        "for path in out.glob('save_*.pkl'): path.unlink()",
    },
    "binary and text files that tell how it ran": {
        "setup": JSON_SAVES + JSONL,
        "started": "open(out / 'train.log', 'a').write(f'started at step {step}, {time.time()}\\n')\n"
        "open(out / f'events.{os.getpid()}.bin', 'wb').write(os.urandom(64))",
    },
}


@pytest.mark.parametrize("style", CORRECT)
def test_a_correct_program_is_exact(tmp_path: Path, style: str):
    certificate = certified(tmp_path, program(tmp_path, **CORRECT[style]), times=2)
    assert certificate.verdict is Verdict.EXACT, told(certificate)
    assert len(certificate.interrupted[0].restarts) == 2


@pytest.mark.parametrize("setup", [JSON_SAVES + JSONL, PICKLE_SAVES + PRINTED])
def test_a_program_that_loses_a_part_of_its_state_is_not_exact(tmp_path: Path, setup: str):
    certificate = certified(tmp_path, program(tmp_path, setup, restore="momentum = [0.0] * 9"))
    assert certificate.verdict is Verdict.DIVERGED
    assert certificate.interrupted[0].judgement.first_step == 16


def test_one_that_forgets_what_was_best_keeps_another_as_the_best(tmp_path: Path):
    """Weights and losses are equal; only best.json is of another step."""
    keep = """
best = json.loads((out / "best_value.txt").read_text()) if (out / "best_value.txt").exists() and KEEPS else -1e9
def keep_best(state):
    global best
    value = -abs(state["step"] - 10)
    if value > best:
        best = value
        (out / "best_value.txt").write_text(json.dumps(best))
        (out / "best.json").write_text(json.dumps(state))
save_any = save
def save(state):
    save_any(state)
    keep_best(state)
"""
    for keeps, verdict in ((True, Verdict.EXACT), (False, Verdict.DIVERGED)):
        certificate = certified(tmp_path, program(tmp_path, JSON_SAVES + JSONL + f"KEEPS = {keeps}" + keep))
        assert certificate.verdict is verdict, told(certificate)
    [found] = certificate.interrupted
    assert found.judgement.first_step == 20
    assert found.diagnosis is not None
    assert found.diagnosis.component == "best so far"


def test_one_that_logs_nothing_is_interrupted_by_the_names_of_its_saves(tmp_path: Path):
    certificate = certified(tmp_path, program(tmp_path, PICKLE_SAVES + SILENT))
    assert certificate.verdict is Verdict.EXACT, told(certificate)
    [restart] = certificate.interrupted[0].restarts
    assert restart.read


def test_one_that_logs_nothing_and_begins_anew_is_found_out_by_what_it_does_not_read(tmp_path: Path):
    silent = JSON_SAVES + SILENT
    command = program(tmp_path, silent.replace("if path.exists() else None", "if False else None"))
    certificate = certified(tmp_path, command, at_random=1)
    assert certificate.verdict is Verdict.DOES_NOT_RESUME, told(certificate)


def test_one_that_saves_nothing_is_not_proven(tmp_path: Path):
    setup = "def load(): return None\ndef save(state): pass\n" + JSONL
    certificate = certified(tmp_path, program(tmp_path, setup))
    assert certificate.verdict is Verdict.NOT_PROVEN, told(certificate)


def test_one_that_is_over_before_it_can_be_interrupted_is_not_proven(tmp_path: Path):
    certificate = certified(tmp_path, program(tmp_path, JSON_SAVES + JSONL), at_steps=[99])
    assert certificate.verdict is Verdict.NOT_PROVEN
    assert certificate.interrupted[0].run.tries == 3
    assert "ended before it could be interrupted" in certificate.interrupted[0].judgement.reasons[0]


def test_one_that_reads_its_checkpoint_and_begins_anew_all_the_same_does_not_resume(tmp_path: Path):
    """Its bytes are equal, and its log is written anew as by one that keeps the rows behind a checkpoint."""
    setup = JSON_SAVES + "state_of = load\ndef load(): state_of()\n"
    certificate = certified(tmp_path, program(tmp_path, setup + CUT_CSV, started=CUT), at_steps=[22])
    assert certificate.interrupted[0].restarts[0].read
    assert certificate.verdict is Verdict.DOES_NOT_RESUME, told(certificate)


def test_one_that_neither_saves_nor_logs_after_its_restart_is_not_proven(tmp_path: Path):
    setup = JSON_SAVES + JSONL.replace("def log(step, loss):", "def log(step, loss):\n    if step > 17: return")
    setup = setup.replace("def save(state):", "def save(state):\n    if state['step'] > 15: return")
    setup += "resumed = (out / 'state.json').exists()\nlog_any = log\n"
    setup += "def log(step, loss):\n    if not resumed: log_any(step, loss)\n"
    certificate = certified(tmp_path, program(tmp_path, setup, restore="momentum = [0.0] * 9"), at_steps=[17])
    assert certificate.verdict is Verdict.NOT_PROVEN, told(certificate)


def test_one_that_finishes_in_spite_of_sigterm_proves_nothing(tmp_path: Path):
    ignoring = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    certificate = certified(tmp_path, program(tmp_path, JSON_SAVES + JSONL, started=ignoring), signals=["TERM"])
    assert certificate.verdict is Verdict.NOT_PROVEN, told(certificate)


def test_a_file_of_unknown_form_with_other_bytes_is_never_equal(tmp_path: Path):
    started = "open(out / 'optimizer.dat', 'wb').write(b'\\0opaque' + bytes([step]))"
    certificate = certified(tmp_path, program(tmp_path, JSON_SAVES + JSONL, started=started))
    assert certificate.verdict is Verdict.NOT_PROVEN, told(certificate)
    assert "optimizer.dat" in certificate.interrupted[0].judgement.reasons[0]


def test_interruptions_before_the_first_save_prove_nothing(tmp_path: Path):
    certificate = certified(tmp_path, program(tmp_path, JSON_SAVES + JSONL), at_steps=[2])
    assert certificate.verdict is Verdict.NOT_PROVEN, told(certificate)
    assert certificate.interrupted[0].judgement.verdict is Verdict.EXACT


def test_a_pickle_is_read_without_running_what_it_names(tmp_path: Path):
    class Command:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    import pickle

    from neuromanifold_gpt.certify.artifacts import read_tree

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"step": 5, "settings": Command()}))
    tree = read_tree(tmp_path / "evil.pkl")
    assert tree["step"] == 5
    assert "touch" in tree["settings"].content["arguments"][0]
    assert not (tmp_path / "ran").exists()


def test_time_that_runs_out_proves_nothing(tmp_path: Path):
    certificate = certified(tmp_path, program(tmp_path, JSON_SAVES + JSONL), at_random=9, max_minutes=0.04)
    assert certificate.verdict is Verdict.NOT_PROVEN
    assert certificate.not_run


IN_PLACE = """
def load():
    path = out / "state.json"
    return json.loads(path.read_text()) if path.exists() else None
def save(state):
    text = json.dumps(state)
    with open(out / "state.json", "w") as file:
        file.write(text[:100])
        file.flush()
        time.sleep(0.02)
        file.write(text[100:])
"""


def test_a_save_that_overwrites_the_only_checkpoint_is_caught_in_its_middle(tmp_path: Path):
    certificate = certified(tmp_path, program(tmp_path, IN_PLACE + JSONL), at_steps=[], during_save=1)
    [found] = certificate.interrupted
    assert [half.relative for half in found.run.attempts[0].half_written] == ["state.json"]
    assert found.judgement.verdict is Verdict.DOES_NOT_RESUME, told(certificate)
    assert "half-written: state.json" in found.judgement.reasons[0]


def test_one_that_begins_anew_after_its_only_checkpoint_was_torn_has_lost_all_work(tmp_path: Path):
    forgiving = (
        IN_PLACE + "load_any = load\ndef load():\n    try: return load_any()\n    except ValueError: return None\n"
    )
    certificate = certified(tmp_path, program(tmp_path, forgiving + JSONL), at_steps=[], during_save=1)
    assert certificate.verdict is Verdict.LOST_WORK, told(certificate)
    assert certificate.interrupted[0].restarts[0].destroyed


def test_one_that_tries_whether_it_can_write_is_not_taken_for_saving(tmp_path: Path):
    setup = "(out / '.writable').touch(); time.sleep(0.05); (out / '.writable').unlink()\n" + PICKLE_SAVES + JSONL
    certificate = certified(tmp_path, program(tmp_path, setup), at_steps=[], during_save=2, times=2)
    assert certificate.verdict is Verdict.EXACT, told(certificate)
    for found in certificate.interrupted:
        assert all(restart.interrupted_at is not None for restart in found.restarts)
