"""Write one HTML page, and the same as Markdown, that say all that was measured."""

from __future__ import annotations

from compressor.cli.loading import open_default
from compressor.cli.options import ArtifactArgument, JsonOption, OutOption, console, print_json


def command(artifact: ArtifactArgument = None, out: OutOption = None, as_json: JsonOption = False) -> None:
    """Write the report of an artifact: one HTML page that needs no other file, and the same as Markdown.

    For example:

    - `compress report`
    - `compress report model.compressed --out pages`

    The report names what has not been measured yet, with the command that measures it.

    """
    from compressor.report import report

    opened = open_default(artifact)
    written = report(opened.results(), out or opened.folder, artifact=opened.folder, caveats=opened.caveats)
    if as_json:
        print_json({"html": str(written.html), "markdown": str(written.markdown), "results": str(written.results)})
        return
    for path in (written.html, written.markdown):
        console().print(f"wrote {path}", markup=False, soft_wrap=True)
