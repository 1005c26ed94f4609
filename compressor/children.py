"""Start Python processes that import nothing from the current folder.

Otherwise a `torch.py` in the working folder, of the user or of somebody else, would run in place of the real one.
PYTHONPATH, which the user sets, still applies.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent  # a child's path does not have a source folder that is not installed


def python_code(code: str, *arguments: str) -> list[str]:
    """Return the command that runs this code, without warnings."""
    whole = f"import sys; sys.path.append({str(PACKAGE)!r}); {code}"
    return [sys.executable, "-P", "-W", "ignore", "-c", whole, *arguments]


def python_module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs this module."""
    code = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return python_code(code, *arguments)


@contextlib.contextmanager
def without_working_folder() -> Iterator[None]:
    """Let processes that a library starts within the block have no working folder on their path either."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
