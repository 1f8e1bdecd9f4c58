"""Notes signals for the training loop to act on, and ends a process that does not get to it in time.

The handler only sets a flag: it may have interrupted a step, or a save, half-way. A thread of its own watches the
deadline; it hears of a signal even while the main thread is inside a kernel or waits for another rank, when Python runs
no handler.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any


class SignalWatch:
    """Between :meth:`start` and :meth:`stop`, signals are noted in :attr:`received` and do nothing else.

    Args:
        signals: which ones.
        deadline_sec: how long after the first signal the process may go on; ``None`` for as long as it takes.
        on_deadline: called, in a thread, when that is over; returns the exit code with which the process then ends at
            once, and a line that says so.
    """

    def __init__(
        self,
        signals: Sequence[signal.Signals],
        deadline_sec: float | None,
        on_deadline: Callable[[], tuple[int, str]],
    ) -> None:
        self.received: signal.Signals | None = None
        self._signals = tuple(signals)
        self._deadline_sec = deadline_sec
        self._on_deadline = on_deadline
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_fd = -1
        self._pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    @property
    def previous(self) -> dict[signal.Signals, Any]:
        """The handlers that were there before."""
        return self._previous

    def start(self) -> None:
        """Take the signals over. Only the main thread may; in any other, nothing happens."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        if self._deadline_sec is not None:
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            # C code writes the signal's number there, whatever the interpreter is doing.
            self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="signal-deadline", daemon=True)
            self._thread.start()
        _watching.append(self)
        self._previous = {number: signal.signal(number, self._note) for number in self._signals}

    def stop(self, handlers: Mapping[signal.Signals, Any]) -> None:
        """Give the signals to ``handlers``."""
        if not self._previous:
            return
        _watching.remove(self)
        for number in self._previous:
            signal.signal(number, handlers[number])
        self._previous = {}
        if self._pipe is not None and self._thread is not None:
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._pipe[1])  # the thread reads the end of the pipe, and ends
            self._thread.join()
            os.close(self._pipe[0])
            self._pipe = self._thread = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)

    def _watch(self) -> None:
        assert self._pipe is not None
        assert self._deadline_sec is not None
        reader = self._pipe[0]
        ends_sec: float | None = None
        while True:
            left_sec = None if ends_sec is None else max(ends_sec - time.monotonic(), 0.0)
            if not select.select([reader], [], [], left_sec)[0]:
                self._end()
            numbers = os.read(reader, 64)
            if not numbers:
                return
            if self._previous_fd != -1:  # somebody else listens too
                with contextlib.suppress(OSError):
                    os.write(self._previous_fd, numbers)
            if ends_sec is None and set(numbers) & set(self._signals):
                ends_sec = time.monotonic() + self._deadline_sec

    def _end(self) -> None:
        code, line = self._on_deadline()
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
        os._exit(code)  # the main thread cannot be asked to end: that is why we are here


class ShieldedChildren:
    """While it is active, forked children (data workers) leave signals to their parent.

    Schedulers and terminals send a signal to every process of a job; without its data workers, the parent could not
    finish its step. SIGTERM from the parent itself they obey: it is how it ends them.
    """

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        self._signals = tuple(signals)

    def start(self) -> None:
        """From now on."""
        if self not in _shielding:
            _shielding.append(self)

    def stop(self) -> None:
        """Until now."""
        if self in _shielding:
            _shielding.remove(self)

    def in_child(self) -> None:
        """Called in each forked child."""
        for number in self._signals:
            if number == signal.SIGTERM:
                # Blocked and waited for, since a handler is not told who sent it, and torch sets its own.
                signal.pthread_sigmask(signal.SIG_BLOCK, {number})
                threading.Thread(target=_obey_parent, args=(number,), name="obey-parent", daemon=True).start()
            else:
                signal.signal(number, signal.SIG_IGN)


def _obey_parent(number: signal.Signals) -> None:
    while signal.sigwaitinfo({number}).si_pid != os.getppid():
        pass
    os._exit(0)


_watching: list[SignalWatch] = []
_shielding: list[ShieldedChildren] = []


def _forget_in_child() -> None:
    if _watching:
        signal.set_wakeup_fd(-1)  # a signal that the child gets is none of its parent's
    for shielded in _shielding:
        shielded.in_child()
    _watching.clear()
    _shielding.clear()


os.register_at_fork(after_in_child=_forget_in_child)
