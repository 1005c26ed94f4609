"""What a file or folder contains: samples by split, and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.data.samples import Samples
from compressor.data.splits import SplitName


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Samples by split, or under `None` where there are no splits.

    `by_name`: a label is a position among sorted names and means the name. `caveats` are lines for the user.
    """

    splits: Mapping[SplitName | None, Samples | None]
    classes: tuple[str, ...] | None = None
    by_name: bool = False
    caveats: tuple[str, ...] = ()
