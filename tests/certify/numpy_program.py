"""A complete little training program without torch, with one bug of choice in its resume.

``python numpy_program.py OUT [--bug=NAME] [option=value ...]``. Everything of real training is there: shuffled
epochs, dropout, batch norm, Adam, a schedule, an average of the weights, a loss scale.
Without a bug it resumes exactly.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

SETTINGS = {"steps": 40, "save": 5, "sleep_ms": 4, "log": "jsonl", "seed": 3, "keep": 100}
SAMPLES, WIDTH, BATCH = 32, 4, 4


class Training:
    def __init__(self, seed):
        start = np.random.RandomState(seed)
        self.x = start.randn(SAMPLES, WIDTH)
        self.y = self.x @ start.randn(WIDTH)
        self.rng = np.random.RandomState(seed + 1)
        self.state = {
            "model/weight": np.zeros(WIDTH),
            "model/running_mean": np.zeros(WIDTH),
            "optimizer/exp_avg": np.zeros(WIDTH),
            "optimizer/exp_avg_sq": np.zeros(WIDTH),
            "optimizer/step": np.int64(0),
            "scheduler/last_epoch": np.int64(0),
            "ema/weight": np.zeros(WIDTH),
            "scaler/scale": np.float64(1024.0),
            "scaler/growth_tracker": np.int64(0),
            "data/position": np.int64(0),
            "curriculum/stage": np.int64(0),
            "tokens_seen": np.int64(0),
            "step": np.int64(0),
        }

    def learning_rate(self):
        return 0.05 / (1 + 0.1 * float(self.state["scheduler/last_epoch"]))

    def train_step(self):
        state = self.state
        per_epoch = SAMPLES // BATCH
        epoch, batch = divmod(int(state["data/position"]), per_epoch)
        ids = np.random.RandomState(1000 + epoch).permutation(SAMPLES)[batch * BATCH : (batch + 1) * BATCH]
        difficulty = 1 - 0.97 ** float(state["curriculum/stage"])
        x, y = (0.5 + 0.5 * difficulty) * self.x[ids] * (self.rng.rand(BATCH, WIDTH) > 0.1), self.y[ids]
        rate = self.learning_rate()
        error = x @ state["model/weight"] - y
        gradient = (2 * error @ x / BATCH) * state["scaler/scale"] / state["scaler/scale"]
        state["model/running_mean"] = 0.9 * state["model/running_mean"] + 0.1 * x.mean(0)
        state["optimizer/step"] += 1
        state["optimizer/exp_avg"] = 0.9 * state["optimizer/exp_avg"] + 0.1 * gradient
        state["optimizer/exp_avg_sq"] = 0.999 * state["optimizer/exp_avg_sq"] + 0.001 * gradient**2
        first = state["optimizer/exp_avg"] / (1 - 0.9 ** state["optimizer/step"])
        second = state["optimizer/exp_avg_sq"] / (1 - 0.999 ** state["optimizer/step"])
        state["model/weight"] = state["model/weight"] - rate * first / (np.sqrt(second) + 1e-8)
        state["ema/weight"] = 0.95 * state["ema/weight"] + 0.05 * state["model/weight"]
        state["scaler/growth_tracker"] += 1
        if state["scaler/growth_tracker"] == 7:
            state["scaler/growth_tracker"], state["scaler/scale"] = np.int64(0), state["scaler/scale"] * 2
        state["scheduler/last_epoch"] += 1
        state["data/position"] += 1
        state["curriculum/stage"] += 1
        state["tokens_seen"] += x.size
        state["step"] += 1
        return {"step": int(state["step"]), "loss": float((error**2).mean()), "lr": rate, "difficulty": difficulty}

    def content(self):
        _, keys, *rest = self.rng.get_state()
        return {**self.state, "rng/keys": keys, "rng/rest": np.array([float(value) for value in rest])}

    def restore(self, content, bug, older):
        fresh = {name: value.copy() for name, value in self.state.items()}
        for name in self.state:
            self.state[name] = content[name][()]
        if bug != "rng":
            place, has_gauss, gauss = content["rng/rest"]
            self.rng.set_state(("MT19937", content["rng/keys"], int(place), int(has_gauss), float(gauss)))
        forgotten = {
            "momentum": ["optimizer/exp_avg"],
            "exp_avg_sq": ["optimizer/exp_avg_sq"],
            "step_counter": ["optimizer/step"],
            "ema": ["ema/weight"],
            "scaler": ["scaler/scale", "scaler/growth_tracker"],
            "batch_norm": ["model/running_mean"],
            "data_restarted": ["data/position"],
            "curriculum": ["curriculum/stage"],
            "tokens": ["tokens_seen"],
        }
        for name in forgotten.get(bug, []):
            self.state[name] = fresh[name]
        if bug == "data_skipped":
            self.state["data/position"] += 2
        if bug == "batch_repeated":
            self.state["data/position"] -= 1
        if bug == "scheduler":
            self.state["scheduler/last_epoch"] += 1
        if bug == "wrong_weights":
            self.state["model/weight"] = older["model/weight"]
        if bug == "tiny_error":
            self.state["model/weight"] = self.state["model/weight"] * (1 + 1e-12)


def checkpoints(out):
    return sorted(out.glob("ckpt-*.npz"))


def save(out, training, bug):
    path = out / f"ckpt-{training.state['step']:04d}.npz"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **training.content())
    if bug in ("slow_save", "polite"):
        time.sleep(0.02)
    temporary.replace(path)


def main():
    out = Path(sys.argv[1])
    options = dict(word.lstrip("-").split("=") for word in sys.argv[2:])
    bug = options.pop("bug", "")
    settings = {**SETTINGS, **options}
    training = Training(int(settings["seed"]))
    if bug == "unseeded":
        training.rng = np.random.RandomState()
    found = checkpoints(out)
    resumed = bool(found) and bug != "started_over"
    if bug == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    told_to_end = []
    if bug == "polite":  # no bug at all: it finishes its step and its save, and goes
        signal.signal(signal.SIGTERM, lambda *_: told_to_end.append(True))
    if found and bug == "ends_at_once":
        return
    if bug == "copies":  # what an undisturbed run left elsewhere
        kept = out.parent / "kept"
        if found and kept.exists():
            np.load(found[-1]).close()
            shutil.copytree(kept, out, dirs_exist_ok=True)
            return
    if found and bug == "crash":
        raise SystemExit("KeyError: 'model' is not in the checkpoint")
    if found and bug == "hang":
        time.sleep(1000)
    if resumed:
        chosen = found[-2] if bug == "older" else found[-1]
        with np.load(chosen) as content, np.load(found[0]) as older:
            training.restore(dict(content), bug, dict(older))
    steps = int(settings["steps"]) + (10 if resumed and bug == "too_long" else 0)
    if bug == "started_over":
        (out / "log.jsonl").unlink(missing_ok=True)
    with (out / "log.jsonl").open("a") as log:
        while training.state["step"] < steps:
            row = training.train_step()
            if settings["log"] == "jsonl":
                noise = {"loss": row["loss"] + float(os.urandom(1)[0])} if bug == "random_log" else {}
                log.write(json.dumps({**row, **noise, "step_time": time.perf_counter()}) + "\n")
                log.flush()
            if settings["log"] == "print":
                print(f"step {row['step']}: loss {row['loss']}")
            time.sleep(float(settings["sleep_ms"]) / 1000)
            if row["step"] % int(settings["save"]) == 0:
                save(out, training, bug)
            if told_to_end:
                raise SystemExit(128 + signal.SIGTERM)
    if bug == "copies" and not resumed:
        shutil.copytree(out, kept, dirs_exist_ok=True)
    if bug == "deaf":  # and saves once more, whether it trained or not
        save(out, training, bug)


if __name__ == "__main__":
    main()
