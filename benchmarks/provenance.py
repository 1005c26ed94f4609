"""Where a number comes from: the command, the versions, the machine and the time."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import Any

from compressor.environment import environment


def provenance() -> dict[str, Any]:
    """What a raw result keeps beside its numbers."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", spec.name] if spec else ["python", Path(sys.argv[0]).name]
    # where a machine keeps its data is nobody's business
    command = shlex.join([*start, *("DIR" if Path(word).is_absolute() else word for word in sys.argv[1:])])
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "environment": {**environment(), "command": command},
    }
