"""What is left out of comparisons: what undisturbed runs do not agree upon, and what is no state by its name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from neuromanifold_gpt.certify.compare import FileComparison, RunComparison
from neuromanifold_gpt.certify.names import is_bookkeeping_name, is_clock_name, is_quality_name


@dataclass(frozen=True)
class LeftOut:
    """What two undisturbed runs do not agree upon, so that no conclusion can be drawn from it."""

    leaves: frozenset[tuple[str, str]] = frozenset()  # (file, path in it)
    metrics: frozenset[tuple[str, str]] = frozenset()
    files: frozenset[str] = frozenset()  # unreadable ones, and ones that the second run did not write

    def without(self, comparison: RunComparison) -> RunComparison:
        """The comparison with everything left out that is to be, and differences of the clock and of bookkeeping."""
        files = [self._file(file) for file in comparison.files]
        kept = [
            difference
            for difference in comparison.metric_differences
            if (difference.source, difference.name) not in self.metrics and not _is_no_state(difference.name)
        ]
        not_counted = {
            difference.name
            for difference in comparison.metric_differences
            if (difference.source, difference.name) not in self.metrics and _is_no_state(difference.name)
        } | {
            f"{file.relative}: {leaf.path}"
            for file in comparison.files
            for leaf in file.differences
            if (file.relative, leaf.path) not in self.leaves and (leaf.is_clock or leaf.is_bookkeeping)
        }
        return replace(
            comparison,
            files=[file for file in files if file is not None],
            metric_differences=kept,
            compared_series=comparison.compared_series - self.metrics,
            not_counted=sorted(not_counted),
        )

    def _file(self, file: FileComparison) -> FileComparison | None:
        if file.state in ("unreadable", "missing") and file.relative in self.files:
            return None
        kept = tuple(
            difference
            for difference in file.differences
            if (file.relative, difference.path) not in self.leaves
            and not difference.is_clock
            and not difference.is_bookkeeping
        )
        state = "equal" if file.state == "different" and not kept else file.state
        return replace(file, state=state, differences=kept)


def _is_no_state(name: str) -> bool:
    return (is_clock_name(name) or is_bookkeeping_name(name)) and not is_quality_name(name)


def names_left_out(comparison: RunComparison) -> LeftOut:
    """What differs between two undisturbed runs."""
    return LeftOut(
        leaves=frozenset((file.relative, leaf.path) for file in comparison.files for leaf in file.differences),
        metrics=frozenset((difference.source, difference.name) for difference in comparison.metric_differences),
        files=frozenset(file.relative for file in comparison.files if file.state in ("unreadable", "missing")),
    )
