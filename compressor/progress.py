"""What a long computation reports while it runs: a line of text about its current step."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def quiet(_: str) -> None:
    """Report nothing."""
