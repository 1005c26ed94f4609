"""Where a number comes from: the command, the versions, the machine and the time."""

from __future__ import annotations

import datetime
import sys
from typing import Any

from compressor.environment import environment


def provenance() -> dict[str, Any]:
    """What a raw result keeps beside its numbers."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = ["python", "-m", spec.name, *sys.argv[1:]] if spec else ["python", *sys.argv]
    return {
        "command": " ".join(command),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "environment": environment(),
    }
