"""One HTML page, and the same as Markdown, from an artifact's results; formats numbers, measures none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import ArtifactError
from compressor.files.atomic import whole, write_text
from compressor.report.changes import (
    factorized_section,
    left_alone_section,
    masked_section,
    proof_section,
    repair_section,
    widths_section,
)
from compressor.report.document import Code, Document, Section, Text
from compressor.report.headline import result_section
from compressor.report.integers import int8_section
from compressor.report.markdown import markdown as markdown_of
from compressor.report.missing import Commands
from compressor.report.page import page as page_of
from compressor.report.provenance import (
    environment_section,
    glossary_section,
    lineage_section,
    retraining_section,
    while_training_section,
)
from compressor.report.speeds import latency_section, why_section
from compressor.report.timings import accuracy_section, clock_section
from compressor.results.artifact import Results

__all__ = ["Report", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The files of one report."""

    html: Path
    markdown: Path
    results: Path


def report(results: Results, folder: Path, *, artifact: Path | None = None, caveats: Sequence[str] = ()) -> Report:
    """Write `report.html`, `report.md` and, where it is not there already, `results.json` into `folder`.

    `artifact` is the folder that the report speaks of, where it is another one. Parts that nobody measured are alt to
    be missing, with the command that would measure them; `caveats` are of the artifact. Refused: a folder that
    cannot be written.
    """
    document = compose(results, Commands(artifact=artifact or folder), caveats=caveats)
    written = Report(html=folder / "report.html", markdown=folder / "report.md", results=folder / "results.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(written.html, page_of(document))
        _write(written.markdown, markdown_of(document))
        if not _holds(written.results, results):
            _write(written.results, json.dumps(results.to_json(), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ArtifactError(
            f"the report cannot be written to {folder}: {error.strerror or error}",
            hint="give another folder: `--out DIR`",
        ) from error
    return written


def compose(results: Results, commands: Commands, *, caveats: Sequence[str] = ()) -> Document:
    """The results as a document, in the order in which a reader asks for them."""
    subtitle: Text = ("From the dense network to the small one: what was removed, what it bought, and the proof.",)
    if results.command:
        subtitle = ("Made by ", Code(content=results.command))
    if results.masking is not None and results.pruning is None:
        changes: tuple[Section, ...] = (masked_section(results.masking),)
    elif results.factorizing is not None and results.pruning is None:
        changes = (factorized_section(results.factorizing),)
    else:
        changes = (widths_section(results, commands), left_alone_section(results, commands))
    sections = (
        result_section(results, commands),
        clock_section(results, commands),
        *(section for section in (latency_section(results), why_section(results)) if section is not None),
        accuracy_section(results, commands),
        *((int8_section(results.quantizing),) if results.quantizing else ()),
        *changes,
        proof_section(results, commands),
        *((repair_section(results.repairing),) if results.repairing else ()),
        *((while_training_section(results.while_training),) if results.while_training else ()),
        retraining_section(results, commands),
        lineage_section(results, commands, caveats=caveats),
        environment_section(results, commands),
        glossary_section(),
    )
    return Document(title=results.name, subtitle=subtitle, sections=sections)


def _holds(file: Path, results: Results) -> bool:
    try:
        return Results.from_json(json.loads(file.read_text(encoding="utf-8"))) == results
    except (OSError, ValueError, ArtifactError):
        return False


def _write(file: Path, content: str) -> None:
    with whole(file) as part:
        write_text(part, content)
