"""The tutorial and the how-to pages are run, block by block: they show what is printed, numbers aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.walkthroughs import blocks, commands, cut, missing, shape, walk
from tests.support.hugging import transformers

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in (*DOCS.glob("tutorial.md"), *DOCS.glob("how-to/*.md")))
QUICK = ("how-to/early-exits.md", "how-to/int8.md")  # half a minute each; the others are only in `-m slow`
LONG = tuple(page for page in PAGES if page not in QUICK)


def follow(page: str, folder: Path) -> None:
    if page.endswith(("hugging-face.md", "any-data.md")):
        transformers()
    _, wrong = walk(DOCS / page, folder)
    assert wrong == [], f"after a change that is meant: python -m benchmarks.walkthroughs docs/{page}"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", QUICK)
def test_a_page_can_be_followed(page: str, tmp_path: Path) -> None:
    follow(page, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", LONG)
def test_a_long_page_can_be_followed(page: str, tmp_path: Path) -> None:
    follow(page, tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_commands_that_are_run(page: str) -> None:
    shown = [block for block in blocks((DOCS / page).read_text()) if block.kind in ("bash", "console")]
    run = [block.text for block in shown if not block.not_run]
    assert "compress " in "".join(run)
    assert len(run) >= len(shown) / 2


PAGE = """# A page

```python
# greet.py
print("hello", 12)
```

```console
$ python greet.py
hello 11

$ exit 3
$ echo $?
2
```

<!-- not run: it would never end -->
```bash
sleep 1000000
```

```text
no command
```
"""


def test_a_page_is_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    (tmp_path / "work").mkdir()
    fresh, wrong = walk(page, tmp_path / "work")
    assert wrong == []
    assert fresh == PAGE.replace("hello 11", "hello 12").replace("\n2\n", "\n3\n").replace("12\n\n", "12\n", 1)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("```console\n$ echo a\nb\n```\n", "not printed by `echo a`: b"),
        ("```console\n$ echo a; false\na\n```\n", "exit status 1: echo a; false"),
        ("```bash\nfalse\ntrue\n```\n", "exit status 1 of\nfalse"),
        ("```python\nraise ValueError('no')\n```\n", "ValueError: no"),
    ],
)
def test_what_goes_wrong_is_said(block: str, said: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(block)
    (tmp_path / "work").mkdir()
    _, wrong = walk(page, tmp_path / "work")
    assert len(wrong) == 1
    assert said in wrong[0]


def test_compress_is_this_repository_s(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ compress --version\ncompress 9.9.9\n```\n")
    (tmp_path / "work").mkdir()
    assert walk(page, tmp_path / "work")[1] == []


def test_numbers_do_not_count_and_words_do() -> None:
    assert shape("small  0.26 0.297  3.85 k  2.13× (2.10 to 2.17)") == shape(
        "small 0.5  4.67   912  no significant difference (0.99 to 1.02)"
    )
    assert shape("surgery proof: 1.6e-16 relative") == shape("surgery proof: 2e-9 relative")
    assert shape("proof: 1.6\u202f×\u202f10⁻¹⁶ relative") == shape("proof: 2\u202f×\u202f10⁻⁹ relative")
    assert shape("wrote a.onnx") != shape("wrote b.onnx")
    assert missing(("a 1", "…", "", "b 2"), ["a 3"]) == ["b 2"]
    assert missing(("caveat: loaded machine: 2 cores", "caveat: 44% of the MACs stay"), []) == [
        "caveat: 44% of the MACs stay"
    ]


def test_lines_that_a_page_leaves_out_stay_out() -> None:
    assert cut(("a 1", "…", "d 1"), ["a 2", "b", "c", "d 9"]) == ["a 2", "…", "d 9"]
    assert cut(("a 1",), ["a 2", "b"]) == ["a 2", "b"]


def test_commands_may_go_on_in_the_next_line() -> None:
    (first, second) = commands("$ echo a \\\n    b\na b\n\n$ true\n")
    assert (first.line, first.shown) == ("echo a \\\n    b", ("a b",))
    assert (second.line, second.shown) == ("true", ())
