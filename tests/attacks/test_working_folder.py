"""No file in the working folder runs in place of a library's: every process of ours starts without it on its path."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

import compressor
from compressor.children import python_code, python_module, without_working_folder
from tests.support.command_line import ARCH, done

BAIT = "open('RAN', 'w').close()\nraise ImportError('the wrong one')\n"
BAITED = ("torch", "safetensors", "random", "compressor", "json", "numpy", "runpy", "socket", "multiprocessing")


def lay_bait(folder: Path) -> None:
    for name in BAITED:
        (folder / f"{name}.py").write_text(BAIT, encoding="utf-8")


@pytest.mark.usefixtures("inputs")
def test_verifying_an_artifact_runs_nothing_of_the_folder() -> None:
    lay_bait(Path.cwd())
    done("prune", "tiny.pt", *ARCH, "--ratio", 0.5)
    assert not Path("RAN").exists()


def test_a_module_of_ours_is_started_without_the_folder(workdir: Path) -> None:
    lay_bait(workdir)
    ended = subprocess.run(
        python_module("compressor.cli.main", "--version"), capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith("compress ")
    assert not (workdir / "RAN").exists()


def test_what_the_user_puts_on_the_path_stays_honoured(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workdir / "mine").mkdir()
    (workdir / "mine" / "of_the_user.py").write_text("VALUE = 7\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(workdir / "mine"))
    command = python_code("import of_the_user; print(of_the_user.VALUE, sys.argv[1])", "argument")
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "7 argument\n"


def test_a_pools_processes_start_without_the_folder(workdir: Path) -> None:
    lay_bait(workdir)
    code = (
        "import multiprocessing as m\n"
        "from compressor.children import without_working_folder\n"
        "if __name__ == '__main__':\n"
        "    with without_working_folder(), m.get_context('spawn').Pool(1) as pool: print(pool.map(abs, [-3]))\n"
    )
    (workdir / "elsewhere").mkdir()
    (workdir / "elsewhere" / "main.py").write_text(code, encoding="utf-8")
    command = [*python_code("import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"), "elsewhere/main.py"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout == "[3]\n", ended.stderr
    assert not (workdir / "RAN").exists()


def test_the_environment_is_as_it_was_after_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with without_working_folder():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert "PYTHONSAFEPATH" not in os.environ


def test_no_other_file_starts_python() -> None:
    """`sys.executable` stands in one file, so that no process is started another way."""
    for file in Path(compressor.__file__).parent.rglob("*.py"):
        uses = [
            node
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and node.attr == "executable"
        ]
        assert not uses or file.name == "children.py", file
