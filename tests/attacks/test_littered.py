"""Nothing lost, nothing littered: asked to end, killed at any moment, or replacing an artifact behind a link."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from compressor import stopping
from compressor.checkpoint import artifact_writing
from compressor.cli.options import ExitCode
from compressor.errors import ArtifactError
from compressor.files import atomic
from compressor.files.atomic import put_in_place
from compressor.files.leftovers import PART, beside, owner, sweep, sweep_temp, temporary
from compressor.stopping import Terminated, stop_when_asked
from tests.support.command_line import ARCH, done, interrupted, refused, run, snapshot

DAY = 24 * 3600


def dead_owner() -> str:
    """The name of a process that was here and has ended."""
    code = "from compressor.files.leftovers import owner; print(owner())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def dead() -> str:
    return dead_owner()


class TestSweep:
    def test_what_a_dead_process_left_is_taken_away(self, workdir: Path, dead: str) -> None:
        (workdir / f"a.compressed.part-{dead}").mkdir()
        (workdir / f"a.compressed.part-{dead}" / "recipe.json").touch()
        (workdir / f".frontier.svg.part-{dead}").touch()
        sweep(workdir)
        assert list(workdir.iterdir()) == []

    def test_what_it_was_about_to_replace_is_put_back(self, workdir: Path, dead: str) -> None:
        (workdir / f"a.compressed.old-{dead}").mkdir()
        (workdir / f"a.compressed.old-{dead}" / "recipe.json").write_text("mine", encoding="utf-8")
        sweep(workdir)
        assert [p.name for p in workdir.iterdir()] == ["a.compressed"]
        assert (workdir / "a.compressed" / "recipe.json").read_text(encoding="utf-8") == "mine"

    def test_what_it_has_replaced_is_taken_away(self, workdir: Path, dead: str) -> None:
        (workdir / "a.compressed").mkdir()
        (workdir / f"a.compressed.old-{dead}").mkdir()
        sweep(workdir)
        assert [p.name for p in workdir.iterdir()] == ["a.compressed"]

    def test_what_a_living_process_writes_stays(self, workdir: Path) -> None:
        beside(workdir / "a.compressed", PART).mkdir()
        sweep(workdir)
        assert [p.name for p in workdir.iterdir()] == [f"a.compressed.part-{owner()}"]

    def test_a_number_that_another_process_has_by_now_is_not_its_owner(self, workdir: Path) -> None:
        pid, place, start = owner().split(".")
        (workdir / f"a.part-{pid}.{place}.{int(start) - 5}").touch()
        sweep(workdir)
        assert list(workdir.iterdir()) == []

    def test_what_another_machine_writes_stays_for_a_day(self, workdir: Path, dead: str) -> None:
        pid, _, start = dead.split(".")
        file = workdir / f"a.part-{pid}.abcdef.{start}"
        file.touch()
        sweep(workdir)
        assert file.exists()
        os.utime(file, (time.time() - DAY - 60,) * 2)
        sweep(workdir)
        assert not file.exists()

    def test_what_only_looks_like_it_stays(self, workdir: Path) -> None:
        names = ["a.part-1", "thesis.old-2019", "x.part-1.zzzzzz.3", "part-1.abcdef.3", "a.part-1.abcdef.3.txt"]
        for name in names:
            (workdir / name).touch()
            os.utime(workdir / name, (1, 1))
        sweep(workdir)
        assert sorted(p.name for p in workdir.iterdir()) == sorted(names)

    def test_a_link_is_taken_away_and_not_what_it_points_to(self, workdir: Path, dead: str) -> None:
        (workdir / "precious").mkdir()
        (workdir / "precious" / "thesis").touch()
        (workdir / f"a.part-{dead}").symlink_to(workdir / "precious")
        sweep(workdir)
        assert snapshot(workdir).keys() == {"precious/thesis"}

    def test_temporary_folders_of_the_dead_are_taken_away(
        self, workdir: Path, dead: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(workdir))
        (workdir / f"compress-bench-{dead}-abc_1").mkdir()
        sweep_temp.cache_clear()
        with temporary("probe") as folder:
            assert [p.name for p in workdir.iterdir()] == [folder.name]
            assert owner() in folder.name
        assert list(workdir.iterdir()) == []


class TestReplacing:
    @pytest.fixture
    def two(self, workdir: Path) -> tuple[Path, Path]:
        for name in ("new", "a.compressed"):
            (workdir / name).mkdir()
            (workdir / name / "recipe.json").write_text(name, encoding="utf-8")
        return (workdir / "new").rename(beside(workdir / "a.compressed", PART)), workdir / "a.compressed"

    @pytest.mark.parametrize("swaps", [True, False])
    def test_the_new_one_takes_the_place(
        self, two: tuple[Path, Path], swaps: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not swaps:
            monkeypatch.setattr(atomic, "exchanged", lambda *_: False)
        put_in_place(*two)
        assert (two[1] / "recipe.json").read_text(encoding="utf-8") == "new"
        assert [p.name for p in two[1].parent.iterdir()] == ["a.compressed"]

    def test_two_names_are_swapped_at_once(self, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        if not atomic.exchanged(two[0], two[1]):
            pytest.skip("this system cannot")
        assert (two[1] / "recipe.json").read_text(encoding="utf-8") == "new"
        assert (two[0] / "recipe.json").read_text(encoding="utf-8") == "a.compressed"
        atomic.exchanged(two[0], two[1])
        monkeypatch.setattr(Path, "rename", None)  # nothing is renamed: there is no moment without an artifact
        put_in_place(*two)

    @pytest.mark.parametrize("at", ["first", "second", "last"])
    def test_killed_between_two_renames_nothing_is_lost(self, workdir: Path, at: str) -> None:
        """A process that dies right after its first or second rename, or before it clears away."""
        code = f"""
import os, shutil, sys
from pathlib import Path
from compressor.files import leftovers
from compressor.files import atomic
atomic.exchanged = lambda *_: False
place = Path("a.compressed"); part = leftovers.beside(place, "part")
for folder, text in ((place, "old"), (part, "new")):
    folder.mkdir(); (folder / "recipe.json").write_text(text)
rename, done = Path.rename, []
def then_die(self, other):
    rename(self, other); done.append(1)
    if len(done) == {{"first": 1, "second": 2, "last": 3}}["{at}"]: os._exit(9)
Path.rename = then_die
shutil.rmtree = lambda *_, **__: os._exit(9)
atomic.put_in_place(part, place)
"""
        assert subprocess.run([sys.executable, "-c", code], cwd=workdir, check=False).returncode == 9
        sweep(workdir)
        assert [p.name for p in workdir.iterdir()] == ["a.compressed"]
        expected = "old" if at == "first" else "new"
        assert (workdir / "a.compressed" / "recipe.json").read_text(encoding="utf-8") == expected

    @pytest.mark.usefixtures("pruned")
    def test_an_artifact_behind_a_link_is_replaced_and_the_link_stays(self) -> None:
        Path("elsewhere").mkdir()
        Path("tiny.compressed").rename("elsewhere/real")
        Path("tiny.compressed").symlink_to("elsewhere/real")
        before = json.loads(Path("elsewhere/real/results.json").read_text(encoding="utf-8"))
        done("prune", "tiny.pt", *ARCH, "--ratio", 0.25, "--align", 1, "--force")
        assert Path("tiny.compressed").is_symlink()
        assert json.loads(Path("elsewhere/real/results.json").read_text(encoding="utf-8")) != before
        assert [p.name for p in Path("elsewhere").iterdir()] == ["real"]

    @pytest.mark.usefixtures("inputs")
    def test_a_link_to_nothing_or_to_itself_and_a_long_name_are_refused(self) -> None:
        Path("dangling").symlink_to("gone")
        Path("loop").symlink_to("loop")
        budget = ("prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--out")
        refused(*budget, "dangling", says="dangling is a link to nothing", hints="--out")
        refused(*budget, "loop", says="loop", hints="--out")
        refused(*budget, "x" * 240, says="too long", hints="shorter")  # with what is added while it is written
        refused(*budget, "/".join(["y" * 200] * 30), says="too long", hints="--out")


@pytest.mark.usefixtures("pruned")
def test_a_files_mode_is_as_the_umask_says() -> None:
    before = os.umask(0o027)
    try:
        done("prune", "tiny.pt", *ARCH, "--ratio", 0.25, "--align", 1, "--out", "b")
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o777) for p in Path("b").rglob("*") if p.is_file()} == {"0o640"}
    assert oct(Path("b").stat().st_mode & 0o777) == "0o750"


class TestStopped:
    def test_a_signal_is_raised_once_and_the_second_is_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stopping, "_asked", [])
        before = signal.getsignal(signal.SIGTERM)
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            stop_when_asked()
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_once_all_is_done_a_signal_ends_the_process_as_any(self) -> None:
        code = """
import atexit, os, signal, sys
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.argv = ["compress", "--version"]
from compressor.cli.main import main
main()
"""
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.returncode == -signal.SIGTERM
        assert ended.stdout.startswith("compress ")
        assert "Traceback" not in ended.stderr

    @pytest.mark.usefixtures("pruned")
    def test_it_is_an_interruption_with_its_own_exit_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stopped(*_: object, **__: object) -> None:
            raise Terminated

        monkeypatch.setattr(artifact_writing, "_read_back", stopped)
        before = snapshot(Path.cwd())
        told = run("prune", "tiny.pt", *ARCH, "--ratio", 0.25, "--align", 1, "--out", "b")
        assert told.exit_code == ExitCode.TERMINATED == 143
        assert "terminated: nothing was left half written" in told.stderr
        assert snapshot(Path.cwd()) == before

    @pytest.mark.usefixtures("pruned")
    @pytest.mark.parametrize("error", [AttributeError("half a module"), ArtifactError("half a file")])
    def test_an_error_after_it_was_swallowed_is_the_interruption(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An import that is stopped half way may hide it, and leave half a module for others to stumble over."""

        def stumbles(*_: object, **__: object) -> None:
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
            raise error

        monkeypatch.setattr(artifact_writing, "_read_back", stumbles)
        monkeypatch.setattr(stopping, "_asked", [])
        before, there = signal.getsignal(signal.SIGTERM), snapshot(Path.cwd())
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            stop_when_asked()
            told = run("prune", "tiny.pt", *ARCH, "--ratio", 0.25, "--align", 1, "--out", "b")
        finally:
            signal.signal(signal.SIGTERM, before)
        assert told.exit_code == ExitCode.TERMINATED
        assert "error" not in told.stderr
        assert snapshot(Path.cwd()) == there

    @pytest.mark.usefixtures("pruned")
    def test_a_real_sigterm_while_training_leaves_nothing_but_the_state(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "temp").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temp"))
        arguments = ["retrain", "tiny.compressed", "--data", "data.npz", "--epochs", "500"]
        said = interrupted(arguments, when="epoch 1/", then=0.3, by=signal.SIGTERM, code=ExitCode.TERMINATED)
        assert "the state after the last whole epoch is kept" in said
        assert [p.name for p in tmp_path.glob("*.part-*")] == []
        assert list((tmp_path / "temp").glob("compress*")) == []

    @pytest.mark.usefixtures("pruned")
    def test_after_a_kill_the_next_command_clears_away(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "temp").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temp"))
        code = """
import os, sys
from pathlib import Path
from compressor.checkpoint import artifact_writing
artifact_writing._read_back = lambda *_, **__: (Path(os.environ["TMPDIR"]), os.kill(os.getpid(), 9))
from compressor.files.leftovers import temporary
from compressor.cli.main import app
with temporary("bench"): app(sys.argv[1:])
"""
        arguments = ["prune", "tiny.pt", *ARCH, "--ratio", "0.25", "--align", "1", "--out", "b"]
        assert subprocess.run([sys.executable, "-c", code, *arguments], check=False).returncode == -9
        assert len(list(tmp_path.glob("b.part-*"))) == 1
        assert len(list((tmp_path / "temp").iterdir())) == 1
        monkeypatch.setattr(tempfile, "tempdir", None)
        sweep_temp.cache_clear()
        done("export", "tiny.compressed")
        assert list(tmp_path.glob("b.*")) == []
        assert list((tmp_path / "temp").glob("compress*")) == []


@pytest.mark.usefixtures("inputs")
def test_training_that_ends_in_nan_before_an_epoch_is_over_leaves_nothing() -> None:
    refused(
        "prune", "tiny.pt", *ARCH, "--ratio", 0.5, "--while-training", "--epochs", 2, "--every", 1, "--lr", 1e30,
        "--data", "data.npz", says="the loss is", hints="lower `--lr`",
    )  # fmt: skip
    assert list(Path.cwd().glob("*.partial")) == []
