"""Command lines: ``python train.py`` and ``neuromanifold``. Errors of users become one line here, and nowhere else."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neuromanifold_gpt.certify import options
from neuromanifold_gpt.checkpoint.discovery import candidates, list_checkpoints, verify_checkpoint
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    CheckpointLockedError,
    CheckpointNotFoundError,
    CheckpointWarning,
)
from neuromanifold_gpt.checkpoint.storage import read_errors
from neuromanifold_gpt.data.errors import DataOrderWarning, DatasetError
from neuromanifold_gpt.state.compare import compare_checkpoints

_EXIT_BAD_INPUT = 2
_EXIT_LOCKED = 3


def train_main(arguments: Sequence[str] | None = None) -> int:
    """``python train.py``; returns the exit code.

    0 at the end, 1 for errors of data and checkpoints, 2 for wrong flags, 3 if another process trains in the directory,
    4 if the deadline after a signal passed, 130 after SIGINT, 143 after SIGTERM, 138 after SIGUSR1.
    """
    import jsonargparse

    from neuromanifold_gpt.gpt.model import GPTConfigError
    from neuromanifold_gpt.training.config import TrainConfig
    from neuromanifold_gpt.training.errors import ConfigError
    from neuromanifold_gpt.training.run import train

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog="train.py", description=TrainConfig.__doc__, epilog=_TRAIN_EPILOG, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="Read settings from a YAML file; later flags override it.")
    parser.add_class_arguments(TrainConfig)
    try:
        namespace = parser.parse_args(arguments)
        del namespace.config
        return _say_errors(lambda: train(TrainConfig(**namespace.as_dict())))
    except (argparse.ArgumentError, ConfigError, GPTConfigError) as error:
        print(f"error: {' '.join(str(error).split())} (python train.py --help lists the flags)", file=sys.stderr)
        return _EXIT_BAD_INPUT


_TRAIN_EPILOG = (
    "Started again with the same --out_dir, training continues from the newest intact checkpoint there, exactly. "
    "SIGINT, SIGTERM and SIGUSR1 finish the step, save, and exit with 130, 143 and 138. Other exit codes: 0 finished, "
    "1 a checkpoint or the data cannot be used, or a save failed, 2 wrong flags, 3 another process trains in "
    "--out_dir, 4 --stop_deadline_sec passed before the step was saved."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """``neuromanifold``: look at checkpoints, certify training; returns the exit code."""
    parser = argparse.ArgumentParser(prog="neuromanifold", description="Look at checkpoints; certify training.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, action, summary in (
        ("list", _list, "List the complete checkpoints of a directory."),
        ("verify", _verify, "Compare every byte with its digest; exit code 1 if one differs."),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("directory", help="directory of checkpoints")
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(action=action)
    diff = commands.add_parser("diff", help=_DIFF_SUMMARY, description=_DIFF_SUMMARY)
    diff.add_argument("left", help="any file of a checkpoint, separated or unified")
    diff.add_argument("right", help="any file of the other")
    diff.add_argument("--json", action="store_true", help="print JSON")
    diff.set_defaults(action=_diff)
    certify = commands.add_parser("certify", help=options.SUMMARY, description=options.SUMMARY, epilog=options.EPILOG)
    options.add_arguments(certify)
    certify.set_defaults(action=options.run)
    chosen = parser.parse_args(arguments)
    return _say_errors(lambda: chosen.action(chosen))


_DIFF_SUMMARY = "Name what differs between two checkpoints, first things first; exit code 1 if anything does."


def _list(options: argparse.Namespace) -> int:
    found = list_checkpoints(_directory(options))
    rows: list[dict[str, Any]] = [
        {
            "name": checkpoint.name,
            "step": checkpoint.step,
            "size_bytes": checkpoint.size_bytes,
            "model_only": checkpoint.model_only,
            "metrics": checkpoint.metrics,
        }
        for checkpoint in found
    ]
    if options.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        metrics = ", ".join(f"{key} {value:.6g}" for key, value in row["metrics"].items())
        kind = "model only" if row["model_only"] else "model and optimizer"
        print(f"{row['name']}  {row['size_bytes'] / 1e6:.2f} MB  {kind}  {metrics}".rstrip())
    return 0


def _verify(options: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    for paths in candidates(_directory(options)):
        try:
            report = verify_checkpoint(paths.manifest)
            rows.append(
                {"name": paths.name, "intact": True, "tensors": report.tensors, "size_bytes": report.size_bytes}
            )
        except CheckpointError as error:
            rows.append({"name": paths.name, "intact": False, "error": type(error).__name__, "message": str(error)})
    damaged = sum(not row["intact"] for row in rows)
    if options.json:
        print(json.dumps({"checkpoints": rows, "intact": len(rows) - damaged, "damaged": damaged}))
        return int(damaged > 0)
    for row in rows:
        print(
            f"{row['name']}: intact, {row['tensors']} tensors, {row['size_bytes'] / 1e6:.2f} MB"
            if row["intact"]
            else f"{row['name']}: {row['error']}: {row['message']}"
        )
    print(f"{len(rows) - damaged} intact, {damaged} damaged")
    return int(damaged > 0)


def _diff(options: argparse.Namespace) -> int:
    comparison = compare_checkpoints(options.left, options.right)
    if options.json:
        print(json.dumps({"equal": comparison.equal, "differences": [asdict(d) for d in comparison.differences]}))
    else:
        for difference in comparison.differences:
            print(difference)
        print("equal, bit for bit" if comparison.equal else f"{len(comparison.differences)} differences")
    return int(not comparison.equal)


def _directory(options: argparse.Namespace) -> Path:
    directory = Path(options.directory)
    with read_errors(directory):
        is_there = directory.is_dir()
    if not is_there:
        raise CheckpointNotFoundError(f"{directory}: there is no such directory.")
    return directory


def _say_errors(action: Callable[[], int]) -> int:
    def one_line(message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
        if issubclass(category, CheckpointWarning | DataOrderWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            original(message, category, *where, **how)

    original, warnings.showwarning = warnings.showwarning, one_line
    try:
        return action()
    except (CheckpointError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_LOCKED if isinstance(error, CheckpointLockedError) else 1
    finally:
        warnings.showwarning = original
