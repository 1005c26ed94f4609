"""Being asked to end (SIGTERM, a terminal that closes) is an interruption: what is half written goes, as on Ctrl-C."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from typing import Any

SIGNALS = ("SIGTERM", "SIGHUP")  # of `docker stop`, schedulers, `timeout`; of a terminal
_asked: list[int] = []  # the signals that came


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by a signal other than Ctrl-C."""


def stop_when_asked() -> None:
    """From now on these signals raise `Terminated` in the main thread; one that is ignored stays so, as by `nohup`."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)


def end_at_once() -> None:
    """From now on these signals end the process as they end any: all is done, and Python is about to leave."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def was_asked() -> bool:
    """Whether it has been asked to end: what raises after that may be code that was stopped half way and goes on."""
    return bool(_asked)


def _stop(number: int, frame: Any) -> None:
    del frame
    _asked.append(number)
    # `timeout` sends it twice: the second one must not interrupt the clearing away that the first one began
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


def die_with_parent() -> None:
    """Have the system end this process with the one that started it, where it can: a fork is nobody else's to end."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
