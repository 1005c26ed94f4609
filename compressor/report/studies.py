"""A study's page: the verdict of each claim with the interval that decided it, the pictures, and every cell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.report.document import (
    Block,
    Code,
    Column,
    Document,
    Facts,
    Figure,
    Folded,
    Paragraph,
    Section,
    Span,
    Strong,
    Table,
    Text,
    Tone,
)
from compressor.report.plots.studies import picture
from compressor.words import digits


def document(study: Mapping[str, Any]) -> Document:
    """Return the page of the values that `studies.runner.results_to_json` returned."""
    data = study["data"]
    sizes = ", ".join(f"{n:,} to {name}" for name, n in data["sizes"].items())
    about: list[Block] = [Paragraph(text=spans(part)) for part in str(study["about"]).split("\n\n")]
    return Document(
        title=study["title"],
        subtitle=(f"{study['study']}, scale {study['scale']}, on {data.get('name', 'data')}{sizes and ': '}{sizes}",),
        sections=(
            Section(
                anchor="verdict",
                title="Verdict",
                blocks=tuple(block for claim in study["claims"] for block in _claim(claim)),
                note=(
                    "A claim is ", Strong(content="reproduced"), " where every interval lies wholly on the side that "
                    "it claims, ", Strong(content="contradicted"), " where one lies wholly on the other, and ",
                    Strong(content="inconclusive"), " otherwise.",
                ),
            ),
            Section(
                anchor="pictures",
                title="Pictures",
                blocks=tuple(Figure(drawings=(picture(plot, alone=False),), caption=()) for plot in study["plots"]),
                note=("Lines join means over seeds; bands reach from the lowest to the highest seed, dots are seeds.",),
            ),
            Section(anchor="about", title="What was run", blocks=(*about, *_cells(study["cells"]))),
            Section(anchor="provenance", title="Provenance", blocks=(_provenance(study),)),
        ),
    )  # fmt: skip


def spans(words: str) -> Text:
    """A docstring's paragraph, with `**weight**` and code in backticks as what they mean."""
    parts = re.split(r"(\*\*[^*]+\*\*|`[^`]+`)", words.replace("\n", " "))
    made: list[Span] = []
    for part in (part for part in parts if part):
        if part.startswith("**"):
            made.append(Strong(content=part.strip("*")))
        else:
            made.append(Code(content=part.strip("`")) if part.startswith("`") else part)
    return tuple(made)


def _claim(claim: Mapping[str, Any]) -> list[Block]:
    source = f" ({claim['source']})" if claim["source"] else ""
    tone = {"reproduced": Tone.PLAIN, "contradicted": Tone.CAUTION}.get(claim["verdict"], Tone.QUIET)
    blocks: list[Block] = [
        Paragraph(text=(Strong(content=claim["verdict"]), f": {claim['claim']}{source}"), tone=tone),
        Table(
            columns=(
                Column(name="quantity"), Column(name="claimed"), Column(name="measured", numeric=True),
                Column(name="interval", numeric=True), Column(name="n", numeric=True), Column(name="verdict"),
            ),
            rows=tuple(tuple((cell,) for cell in finding_cells(finding)) for finding in claim["findings"]),
            caption="",
        ),
    ]  # fmt: skip
    if claim["why"]:
        blocks.append(Paragraph(text=(claim["why"],)))
    return blocks


def finding_cells(finding: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    """A finding in words: quantity, what is claimed, what was measured, its interval, replicates, verdict."""
    interval, unit = finding["interval"], finding["unit"]
    claimed = f"{finding['claimed']} {digits(finding['bound'])} {unit}".strip()
    if interval is None:
        return finding["quantity"], claimed, "–", "too few replicates", "–", finding["verdict"]
    bounds = f"{digits(interval['low'])} to {digits(interval['high'])}"
    return (
        finding["quantity"], claimed, digits(interval["estimate"]), bounds, str(interval["n"]), finding["verdict"],
    )  # fmt: skip


def _cells(cells: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Every cell's plain numbers, one table for each arm."""
    blocks: list[Block] = []
    for arm in dict.fromkeys(cell["arm"] for cell in cells):
        mine = [cell for cell in cells if cell["arm"] == arm]
        values = list(dict.fromkeys(name for cell in mine for name in cell["values"]))
        numbers = [
            name
            for name in dict.fromkeys(name for cell in mine for name in cell["result"])
            if any(isinstance(cell["result"].get(name), (int, float)) for cell in mine)
        ]
        rows = tuple(
            (
                (str(cell["seed"]),),
                *((_alt(cell["values"].get(name)),) for name in values),
                *((_alt(cell["result"].get(name)),) for name in numbers),
            )
            for cell in mine
        )
        columns = (Column(name="seed", numeric=True), *(Column(name=n, numeric=True) for n in (*values, *numbers)))
        table = Table(columns=columns, rows=rows, caption=arm)
        blocks.append(Folded(summary=f"{arm}: {len(mine)} cells", blocks=(table,)))
    return blocks


def _alt(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "–" if value is None else ("yes" if value else "no")
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _provenance(study: Mapping[str, Any]) -> Block:
    facts: list[tuple[str, Text]] = [("command", (Code(content=study["command"]),))]
    facts += [(str(name), (str(value),)) for name, value in study["environment"].items() if name != "command"]
    return Facts(pairs=tuple(facts))
