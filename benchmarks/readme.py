"""Fill the tables of the README and the docs from the raw results and the code: `python -m benchmarks.readme`.

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; the text around it is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    accuracy,
    coverage,
    latency,
    reference,
    repair,
    speed,
    transformer,
    transformers_coverage,
    verdicts,
)

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", *sorted((HERE.parent / "docs").rglob("*.md")))


def table_in(page: Path) -> str:
    """The last table of a page that a benchmark wrote."""
    tables = re.findall(r"(?:^\|.*\n)+", page.read_text(), flags=re.MULTILINE)
    last: str = tables[-1]
    return last


TABLES: dict[str, Callable[[], str]] = {
    "latency": latency.table,
    "repair": repair.table,
    "transformer": lambda: transformer.table(json.loads(transformer.FILE.read_text())),
    "masked": lambda: table_in(HERE / "masked_repair.md"),
    "lenet": lambda: table_in(HERE / "lenet.md"),
    "accuracy": accuracy.table,
    "coverage": coverage.summary,
    "transformers": transformers_coverage.summary,
    "speed": speed.speedup_table,
    "speedaccuracy": speed.accuracy_table,
    "studies": verdicts.table,
    "commands": reference.command_line,
    "criteria": reference.criteria,
    "runtimes": reference.runtimes,
    "papers": reference.studies,
    "names": reference.public_names,
    "results": reference.results_file,
}


def filled(text: str) -> str:
    """The page with every table as the raw results have it."""

    def fresh(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]]().strip()}\n<!-- /table -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- /table -->", fresh, text, flags=re.DOTALL)


def main() -> None:
    """Write the pages anew."""
    for page in PAGES:
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
