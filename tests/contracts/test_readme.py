"""Documentation as tests: what is written about the command line is true of the command line."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import compressor
from compressor.cli.main import app, commands

ROOT = Path(compressor.__file__).parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / f"{n}.md" for n in ("CHANGELOG", "CONTRIBUTING", "SECURITY")),
]
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands


def fenced(text: str) -> Iterator[str]:
    """Every shell command line in the fenced blocks, with continued lines joined, and pipes and `&&` taken apart."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||[|;]", line.removeprefix("$ ")):
                yield part.strip()


def words_of(line: str) -> list[str] | None:
    """What follows `compress`, where that is the program that the line runs."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    return words[1:] if words and Path(words[0]).name == "compress" else None


def mistakes(words: list[str]) -> list[str]:
    """Commands and options that there are not."""
    known = GROUP
    if words and not words[0].startswith("-"):
        if words[0] not in COMMANDS:
            return [f"no command `{words[0]}`"]
        known = COMMANDS[words[0]]
    options = {o for p in known.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    used = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return [f"no option `{option}`: {shlex.join(words)}" for option in used if option not in options]


def in_readme() -> list[list[str]]:
    lines = [line for page in PAGES for line in fenced(page.read_text())]
    return [words for line in lines if (words := words_of(line)) is not None]


def in_backticks() -> list[list[str]]:
    """Every `compress …` in backticks: in docstrings, hints, the README and the other pages."""
    files = [*ROOT.glob("compressor/**/*.py"), *ROOT.glob("sample_models/*.py"), *PAGES]
    found: list[list[str]] = []
    for file in files:
        text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)
        for line in re.findall(r"`(compress [^`\n]+)`", text):
            words = words_of(re.sub(r"[.…]+$", "", line))
            if words:
                found.append(words)
    return found


def test_the_mistakes_are_seen() -> None:
    assert mistakes(["prune", "model.pt", "--ratio", "0.5"]) == []
    assert mistakes(["prune", "model.pt", "--ratoi", "0.5"])
    assert mistakes(["prun", "model.pt"])


def test_the_commands_in_the_readme_exist() -> None:
    found = in_readme()
    assert ["demo"] in found
    assert [m for words in found for m in mistakes(words)] == []


def test_the_commands_in_hints_and_docstrings_exist() -> None:
    found = in_backticks()
    assert len(found) > 15
    assert [m for words in found for m in mistakes(words)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_and_an_example_that_parses(name: str) -> None:
    text = inspect.cleandoc(commands()[name].__doc__ or "")  # Python 3.13 takes the indentation away itself
    summary, _, rest = text.partition("\n\n")
    assert summary.strip().endswith(".")
    assert rest.strip().startswith("For example:\n\n- `compress "), "examples come first, one a line"
    examples = [words_of(line) for line in re.findall(r"`(compress [^`]+)`", " ".join(rest.split()))]
    assert examples
    for words in examples:
        assert words is not None
        assert words[0] == name
        assert mistakes(words) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    silent = [p.name for p in COMMANDS[name].params if not getattr(p, "help", None)]
    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_option_means_the_same_everywhere(name: str) -> None:
    """`--data` of one command is `--data` of another: one help text, one kind of value."""
    shared = (
        "--json",
        "--trust-pickle",
        "--data",
        "--data-root",
        "--download",
        "--seed",
        "--arch",
        "--input",
        "--dense",
        "--mean",
        "--std",
    )
    for parameter in COMMANDS[name].params:
        for option in set(parameter.opts) & set(shared):
            others = {p.help for c in COMMANDS.values() for p in c.params if option in p.opts}
            assert len(others) == 1, option


def test_every_public_name_resolves() -> None:
    for name in compressor.__all__:
        assert getattr(compressor, name) is not None
    assert set(dir(compressor)) == set(compressor.__all__)
    with pytest.raises(AttributeError, match="no attribute `nothing`"):
        _ = compressor.nothing


def test_the_order_of_help_is_the_order_of_work() -> None:
    assert list(COMMANDS)[:4] == ["inspect", "sensitivity", "prune", "frontier"]


def test_the_tables_are_what_the_raw_results_and_the_code_say() -> None:
    from benchmarks.readme import PAGES as FILLED
    from benchmarks.readme import filled

    texts = {page: page.read_text() for page in FILLED}
    whole = "\n".join(texts.values())
    assert len(re.findall(r"<!-- table: \w+ -->", whole)) == len(re.findall("<!-- /table -->", whole)) >= 5
    stale = [str(page.relative_to(ROOT)) for page, text in texts.items() if filled(text) != text]
    assert stale == [], "write them anew: python -m benchmarks.readme"


def dead_links(page: Path) -> list[str]:
    """Links within the repository that lead nowhere: to no file, or to no heading of it."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M)):
        path, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = page if not path else (page.parent / path)
        headings = (
            re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M) if file.suffix == ".md" and file.is_file() else []
        )
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        if not file.exists() or (anchor and anchor not in anchors):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n[there](page.md#a-page) [gone](gone.md) [no heading](page.md#b) [else](https://x.org)")
    assert dead_links(page) == ["gone.md", "page.md#b"]


def test_every_page_is_reached_from_the_readme() -> None:
    seen, left = set(), [README]
    while left:
        page = left.pop().resolve()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+)", page.read_text())
        left += [page.parent / link for link in links if not link.startswith("http")]
    assert {page.resolve() for page in PAGES} <= seen | {(ROOT / "docs" / "index.md").resolve()}


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150
