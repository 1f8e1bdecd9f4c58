"""Say what a comparison means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from neuromanifold_gpt.certify.attempt import FAILED, FINISHED, INTERRUPTED, OUT_OF_TIME, STALLED, Attempt
from neuromanifold_gpt.certify.compare import MetricDifference, RunComparison, RunFiles
from neuromanifold_gpt.certify.names import LOSS
from neuromanifold_gpt.certify.restarts import Restart, RestartReader
from neuromanifold_gpt.certify.trees import LeafDifference


class Verdict(StrEnum):
    """What interruptions did to the training, the best first."""

    EXACT = "EXACT"
    EQUAL_WITHIN = "EQUAL WITHIN"
    NOT_PROVEN = "NOT PROVEN"
    NOT_DETERMINISTIC = "NOT DETERMINISTIC"
    LOST_WORK = "LOST WORK"
    DIVERGED = "DIVERGED"
    DOES_NOT_RESUME = "DOES NOT RESUME"

    @property
    def severity(self) -> int:
        """0 for EXACT; the verdict of several interruptions is the most severe one."""
        return list(Verdict).index(self)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of several; of none, nothing is proven."""
    return max(verdicts, key=lambda verdict: verdict.severity, default=Verdict.NOT_PROVEN)


@dataclass
class Judgement:
    """The verdict of one interrupted run.

    Attributes:
        reasons: what led to it, in sentences.
        notes: what else is worth knowing, and does not count.
        first_step: the first step at which something differs; ``None`` if nothing does.
        proves: whether training was seen to go on from a checkpoint, and something that came after it was compared.
        within: largest absolute and relative difference and distance in units of the last place, where values differ.
    """

    verdict: Verdict
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first_step: int | None = None
    proves: bool = False
    within: tuple[float, float, float | None] | None = None


def judge(
    attempts: Sequence[Attempt],
    restarts: Sequence[Restart],
    comparison: RunComparison | None,
    undisturbed: RunFiles,
    reader: RestartReader,
    tolerance: float,
) -> Judgement:
    """The verdict of one run that was to be interrupted.

    Args:
        comparison: with the undisturbed run; ``None`` if it did not come to its end.
        tolerance: up to which relative difference it is EQUAL WITHIN rather than DIVERGED.
    """
    last = attempts[-1]
    if not any(attempt.outcome == INTERRUPTED for attempt in attempts):
        if last.outcome == OUT_OF_TIME:
            return Judgement(Verdict.NOT_PROVEN, ["no time was left (--max-minutes)"])
        if last.outcome == FAILED:
            return Judgement(
                Verdict.NOT_PROVEN, [f"it failed by itself, before the interruption: exit code {last.exit_code}"]
            )
        return Judgement(Verdict.NOT_PROVEN, ["it ended before it could be interrupted, in every try"])
    if comparison is None:
        return _unfinished(last, restarts)
    judgement = _compared(comparison, undisturbed, tolerance)
    if before := reader.unlike_undisturbed(attempts[0]):
        return Judgement(
            Verdict.NOT_DETERMINISTIC,
            [f"step {before[0]} differs from the undisturbed run, though nothing had been interrupted by then"],
            first_step=before[0],
        )
    if judgement.first_step is None:  # files that do not tell their step: when they were saved last
        saved_at = [attempts[-1].saved_at.get(file.relative) for file in comparison.files if file.differences]
        judgement.first_step = min((step for step in saved_at if step is not None), default=None)
    judgement.notes += _notes(attempts, restarts, comparison)
    if any(restart.had_ended for restart in restarts):
        judgement.notes.append("it trained on to its end after SIGTERM, so there was no resume to be seen")
    _with_restarts(judgement, restarts)
    resumes = [restart for restart in restarts if restart.checkpoint is not None]
    if not resumes:
        return judgement
    judgement.proves = _compared_behind(resumes[0], attempts, comparison, undisturbed)
    unseen = [why for restart in resumes if (why := reader.why_training_was_not_seen(restart)) is not None]
    if judgement.verdict is Verdict.EXACT and unseen and not any(restart.had_ended for restart in restarts):
        judgement.verdict = Verdict.NOT_PROVEN
        judgement.reasons.append(f"{unseen[0]}: they may have been copied")
    elif judgement.verdict is Verdict.EXACT and not _compared_behind(restarts[-1], attempts, comparison, undisturbed):
        saved = [file.step for file in comparison.files if file.step is not None]
        if saved and max(saved) in [whole.step for whole in restarts[-1].attempt.whole]:
            judgement.notes.append("the last checkpoint was there when it was interrupted: nothing was left to do")
        else:
            judgement.verdict = Verdict.NOT_PROVEN
            judgement.reasons.append("nothing that could be compared was saved or logged after the restart")
    return judgement


def _compared_behind(
    restart: Restart, attempts: Sequence[Attempt], comparison: RunComparison, undisturbed: RunFiles
) -> bool:
    """Whether a checkpoint or a loss that came after a restart is among what was compared."""
    if restart.had_ended:
        return False
    later = [attempt for attempt in attempts if attempt.number > restart.attempt.number]
    saved = {relative for attempt in later for relative in attempt.saved_at}
    if any(
        file.is_state and file.state != "missing" and (file.renamed or file.relative) in saved
        for file in comparison.files
    ):
        return True
    behind = restart.checkpoint_step or 0
    return any(
        step > behind and step in undisturbed.log.values[series]
        for attempt in later
        for series, trained in attempt.noticed.items()
        if series in comparison.compared_series and LOSS.search(series[1])
        for step in trained.values
    )


def _unfinished(last: Attempt, restarts: Sequence[Restart]) -> Judgement:
    if last.outcome == OUT_OF_TIME:
        return Judgement(Verdict.NOT_PROVEN, ["no time was left to finish (--max-minutes)"])
    how = {
        FAILED: f"started again, it ends with exit code {last.exit_code}",
        STALLED: "started again, it neither logs nor saves nor prints anything, and does not end",
    }[last.outcome]
    halves = [str(half) for restart in restarts for half in restart.attempt.half_written]
    left = f"; the interruption had left half-written: {', '.join(halves)}" if halves else ""
    words = last.last_words.splitlines()
    return Judgement(
        Verdict.DOES_NOT_RESUME, [how + left, *([f"its last words: {words[-1].strip()}"] if words else [])]
    )


def _compared(comparison: RunComparison, undisturbed: RunFiles, tolerance: float) -> Judgement:
    leaves = [leaf for file in comparison.files for leaf in file.differences]
    problems = [*_incomplete(comparison, undisturbed)]
    first = first_step(comparison, undisturbed)
    if leaves or comparison.metric_differences or problems:
        within = _largest(leaves, comparison.metric_differences)
        close = all(leaf.within(tolerance) for leaf in leaves) and all(
            difference.relative <= tolerance for difference in comparison.metric_differences
        )
        verdict = Verdict.EQUAL_WITHIN if close and not problems else Verdict.DIVERGED
        return Judgement(verdict, problems, first_step=first, within=within)
    unreadable = [file for file in comparison.files if file.state == "unreadable"]
    if unreadable:
        reasons = [f"{file.relative} has other bytes, and cannot be read: {file.reason}" for file in unreadable]
        return Judgement(Verdict.NOT_PROVEN, reasons)
    if not any(file.state == "equal" and file.is_state for file in comparison.files):
        return Judgement(Verdict.NOT_PROVEN, ["no checkpoint was found in the output directory, so none was compared"])
    return Judgement(Verdict.EXACT)


def _incomplete(comparison: RunComparison, undisturbed: RunFiles) -> list[str]:
    """What the run should have left at its end and did not."""
    problems = []
    last_step = max((file.step for file in comparison.files if file.step is not None), default=None)
    finals = (
        [file for file in comparison.files if file.step == last_step] if last_step is not None else comparison.files
    )
    missing = [file for file in finals if file.state == "missing" and file.is_state]
    if missing:
        problems.append(f"the last checkpoint is not there: {', '.join(file.relative for file in missing[:3])}")
    main = undisturbed.log.main_source
    steps = undisturbed.log.main_steps()
    if main is not None and steps:
        beyond = [step for step in comparison.further_steps.get(main, ()) if step > max(steps)]
        if beyond:
            problems.append(f"it trained on to step {beyond[-1]}; undisturbed, it ends at step {max(steps)}")
        if max(steps) in comparison.missing_steps.get(main, ()) and last_step is None:
            problems.append(f"it did not log step {max(steps)}, the last one")
    return problems


def first_step(comparison: RunComparison, undisturbed: RunFiles) -> int | None:
    """The first step at which a log or a checkpoint differs."""
    units = undisturbed.log.units
    logged = [difference.step for difference in comparison.metric_differences if units[difference.source] == "step"]
    saved = [file.step for file in comparison.files if file.differences and file.step is not None]
    other = [difference.step for difference in comparison.metric_differences]
    return min(logged + saved, default=min(other, default=None))


def _largest(
    leaves: Sequence[LeafDifference], metrics: Sequence[MetricDifference]
) -> tuple[float, float, float | None] | None:
    leaves = [
        leaf for leaf in leaves if leaf.largest_ulps is not None
    ]  # whole numbers have no sizes that mean anything
    absolutes = [leaf.largest_absolute for leaf in leaves if leaf.largest_absolute is not None]
    relatives = [leaf.largest_relative for leaf in leaves if leaf.largest_relative is not None]
    ulps = [leaf.largest_ulps for leaf in leaves if leaf.largest_ulps is not None]
    absolutes += [difference.absolute for difference in metrics]
    relatives += [difference.relative for difference in metrics]
    return (max(absolutes), max(relatives), max(ulps, default=None)) if absolutes and relatives else None


def _with_restarts(judgement: Judgement, restarts: Sequence[Restart]) -> None:
    """What the restarts add: work that was lost, and training that began anew."""
    for restart in restarts:
        name = restart.checkpoint.name if restart.checkpoint is not None else ""
        if restart.started_over:
            judgement.verdict = Verdict.DOES_NOT_RESUME
            how = "ended with exit code 0 and trained nothing" if restart.did_nothing else "began anew"
            judgement.reasons.insert(0, f"started again, it {how}, although {name} was there and whole")
            return
        if restart.destroyed:
            reason = "the interrupted save had begun by overwriting the only checkpoint: all work was lost"
        elif restart.lost_steps:
            reason = (
                f"started again, it continued at step {restart.first_step}, although {name} (step "
                f"{restart.checkpoint_step}) was there and whole: {restart.lost_steps} steps were trained again"
            )
        else:
            continue
        judgement.reasons.append(reason)
        if judgement.verdict.severity < Verdict.LOST_WORK.severity:
            judgement.verdict = Verdict.LOST_WORK
    if judgement.verdict is Verdict.EXACT and not all(_is_clear(restart) for restart in restarts):
        judgement.verdict = Verdict.NOT_PROVEN
        judgement.reasons.append("whether it resumed or began anew could not be told from what it logged or read")


def _is_clear(restart: Restart) -> bool:
    unseen = restart.next_attempt.outcome == INTERRUPTED and restart.first_step is None  # ended before it began
    return restart.checkpoint is None or restart.resumed or unseen


def _notes(attempts: Sequence[Attempt], restarts: Sequence[Restart], comparison: RunComparison) -> list[str]:
    notes = []
    failed = [attempt for attempt in attempts[:-1] if attempt.outcome == FAILED]
    if failed:
        notes.append(f"needed another start: attempt {failed[0].number} ended with exit code {failed[0].exit_code}")
    if attempts[-1].outcome == FINISHED and all(restart.checkpoint is None for restart in restarts):
        notes.append("the interruption came before the first checkpoint, so training rightly began anew")
    for source, steps in comparison.missing_steps.items():
        notes.append(f"{source}: {len(steps)} steps are missing, from step {steps[0]}")
    for source, steps in comparison.repeated_steps.items():
        if steps:
            notes.append(f"{source}: {len(steps)} steps are there more than once, from step {steps[0]}")
    if comparison.not_counted:
        notes.append(f"differs and does not count, by its name: {', '.join(comparison.not_counted[:5])}")
    missing = [file.relative for file in comparison.files if file.state == "missing"]
    if missing:
        notes.append(f"checkpoints of the undisturbed run alone: {', '.join(missing[:5])}")
    return notes
