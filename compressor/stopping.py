"""Treat a request to end (SIGTERM, a closed terminal) as Ctrl-C: an interruption that removes half-written files."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from typing import Any

SIGNALS = ("SIGTERM", "SIGHUP")  # sent by `docker stop`, schedulers, `timeout`; by a terminal
_asked: list[int] = []  # the received signals


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C asked the process to end."""


def stop_when_asked() -> None:
    """Let these signals raise `Terminated` in the main thread; a signal that is ignored stays ignored, as under
    `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)


def end_at_once() -> None:
    """Let these signals end the process directly again: the work is done, and Python is about to exit."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def was_asked() -> bool:
    """Return true if the process was asked to end; an error after that may come from interrupted code."""
    return bool(_asked)


def _stop(number: int, frame: Any) -> None:
    """Note the signal and raise `Terminated`."""
    del frame
    _asked.append(number)
    # `timeout` sends it twice: the second signal must not interrupt the clean-up after the first
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


def die_with_parent() -> None:
    """Let the system end this process together with its parent, where it can, because nobody else would end a fork."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
