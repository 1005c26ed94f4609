"""Python processes of our own, which import nothing from the folder that they are started in.

A `torch.py` in the working folder, somebody else's or a user's own, would else run in place of the real one. What the
user puts on PYTHONPATH stays honoured.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent  # a source folder that nobody installed is on no path of a child's


def python_code(code: str, *arguments: str) -> list[str]:
    """The command that runs this code, quietly."""
    found = f"import sys; sys.path.append({str(PACKAGE)!r}); {code}"
    return [sys.executable, "-P", "-W", "ignore", "-c", found, *arguments]


def python_module(name: str, *arguments: str) -> list[str]:
    """The command that runs this module."""
    code = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return python_code(code, *arguments)


@contextlib.contextmanager
def without_working_folder() -> Iterator[None]:
    """Processes that a library starts meanwhile have no working folder on their path either."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
