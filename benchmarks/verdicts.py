"""The studies' verdicts as one table: `python -m benchmarks.verdicts`.

Raw results are what `compress study NAME --scale small --jobs 2 --out benchmarks/studies/NAME` leaves: a JSON file a
cell, `results.json` and the page. Nothing is computed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compressor.report.studies import finding_cells

FOLDER = Path(__file__).parent / "studies"


def results() -> list[dict[str, Any]]:
    """Every study that has been run."""
    return [json.loads(p.read_text()) for p in sorted(FOLDER.glob("*/results.json"))]


def table() -> str:
    """A row for every claim: the verdict, and the finding that decided it, which is the least certain one."""
    lines = [
        "| study | claim | verdict | decided by | measured (95 % interval) | n |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for found in results():
        for claim in found["claims"]:
            agreeing = [f for f in claim["findings"] if f["verdict"] == claim["verdict"]]
            deciding = min(agreeing, key=_margin, default=None)
            more = len(claim["findings"]) - 1
            if deciding is None:
                cells = ("nothing was measured", "", "")
            else:
                quantity, claimed, measured, bounds, n, _ = finding_cells(deciding)
                others = f" (and {more} more)" if more else ""
                cells = (f"{quantity}, claimed {claimed}{others}", f"{measured} ({bounds})", n)
            lines.append(f"| {found['study']} | {claim['claim']} | {claim['verdict']} | {' | '.join(cells)} |")
    return "\n".join(line.replace("\n", " ") for line in lines) + "\n"


def _margin(finding: dict[str, Any]) -> float:
    """How far the interval stays from the bound; none has no interval."""
    if finding["interval"] is None:
        return -1.0
    return max(finding["interval"]["low"] - finding["bound"], finding["bound"] - finding["interval"]["high"])


if __name__ == "__main__":
    print(table(), end="")
