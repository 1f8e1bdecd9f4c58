"""The command line ``neuromanifold certify``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from neuromanifold_gpt.certify.errors import CertifyError
from neuromanifold_gpt.certify.front import certify
from neuromanifold_gpt.certify.verdict import Verdict

SUMMARY = "Interrupt any training command, let it resume, and say whether the same training comes back."
EPILOG = (
    "{out} in the command stands for its output directory. Example: neuromanifold certify --at-step 50 --during-save "
    "-- python train.py --out_dir={out}. Exit codes: 0 EXACT (or EQUAL WITHIN what --within allows); 1 DIVERGED, LOST "
    "WORK, DOES NOT RESUME or EQUAL WITHIN; 2 the options or the command cannot be used; 3 NOT DETERMINISTIC; 4 NOT "
    "PROVEN; 130 and 143 stopped by SIGINT, SIGTERM."
)
EXIT_CODES = {
    Verdict.EXACT: 0,
    Verdict.EQUAL_WITHIN: 1,
    Verdict.DIVERGED: 1,
    Verdict.LOST_WORK: 1,
    Verdict.DOES_NOT_RESUME: 1,
    Verdict.NOT_DETERMINISTIC: 3,
    Verdict.NOT_PROVEN: 4,
}
_EXIT_BAD_INPUT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``certify``."""
    parser.add_argument("command", nargs="+", metavar="CMD", help="the training command, after --, with {out} in it")
    parser.add_argument("--resume-cmd", metavar="CMD", help="starts the training again; default: the same command")
    where = parser.add_argument_group("where to interrupt (default: --at-random 2 --during-save)")
    where.add_argument("--at-step", type=int, action="append", default=[], metavar="N", help="when step N is reached")
    where.add_argument("--at-random", type=int, default=0, metavar="N", help="at N random steps, one run each")
    where.add_argument(
        "--during-save", type=int, nargs="?", const=1, default=0, metavar="N", help="N times in the middle of a save"
    )
    where.add_argument("--every-step", action="store_true", help="at every step, one run each")
    where.add_argument("--times", type=int, default=1, metavar="N", help="interruptions in one run")
    where.add_argument("--seed", type=int, default=0, help="of the random choices")
    where.add_argument(
        "--signal", action="append", choices=["KILL", "TERM"], help="by which signal; may be given twice; default KILL"
    )
    parser.add_argument("--grace-sec", type=float, default=30.0, help="between SIGTERM and SIGKILL")
    parser.add_argument("--max-minutes", type=float, help="for everything")
    parser.add_argument("--stall-sec", type=float, help="silence after which a run counts as stuck")
    parser.add_argument("--within", type=float, metavar="X", help="accept relative differences up to X")
    parser.add_argument("--no-second-look", action="store_true", help="do not repeat a divergence to find its cause")
    parser.add_argument(
        "--work", default="certify-report", metavar="DIR", help="for runs and reports; default: %(default)s"
    )
    parser.add_argument("--junit", metavar="FILE", help="write the verdicts as JUnit XML too")


def run(options: argparse.Namespace) -> int:
    """Certify as the options say; returns the exit code."""

    def end(number: int, _frame: Any) -> NoReturn:
        raise SystemExit(128 + number)  # through the finally blocks, which leave no process behind

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        certificate = certify(
            options.command,
            work=Path(options.work),
            resume_command=options.resume_cmd,
            at_steps=options.at_step,
            at_random=options.at_random,
            during_save=options.during_save,
            every_step=options.every_step,
            times=options.times,
            signals=options.signal or ["KILL"],
            seed=options.seed,
            max_minutes=options.max_minutes,
            tolerance=1e-6 if options.within is None else options.within,
            stall_sec=options.stall_sec,
            grace_sec=options.grace_sec,
            second_look=not options.no_second_look,
            junit=options.junit,
            verbose=True,
        )
    except CertifyError as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    if certificate.verdict is Verdict.EQUAL_WITHIN and options.within is not None:
        return 0
    return EXIT_CODES[certificate.verdict]
