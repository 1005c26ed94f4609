from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from compressor.environment import Processor, commit, cores, environment, processor, saturates_int8, version


def test_it_is_plain_values_and_names_what_computes() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["torch"] == version("torch")
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] == cores() >= 1
    assert set(found) >= {"python", "onnxruntime", "cpu", "platform", "device", "commit", "command"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_cores_are_those_that_the_process_may_use() -> None:
    code = (
        "import os; from compressor.environment import cores\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_a_system_that_binds_no_process_has_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "Process", object)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 12)
    assert cores() == 12


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert version("no-such-package-anywhere") is None
    assert version("no-such-package-anywhere", "torch") == version("torch")


def test_the_processor_is_named_with_its_vectors(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nflags\t\t: fpu sse2 avx2 avx512f\n")
    assert processor(cpuinfo) == "Some CPU @ 2.0GHz (avx512f)"
    cpuinfo.write_text("model name\t: Old CPU\nflags\t\t: sse2\n")
    assert processor(cpuinfo) == "Old CPU"


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "fpu sse2 avx2", True),
        ("AMD64", "fpu sse2 avx2 avx512f avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("x86_64", None, True),
        ("aarch64", "fp asimd", False),
        ("arm64", None, False),
    ],
)
def test_products_of_8_bits_saturate_on_x86_without_vnni(
    tmp_path: Path, machine: str, flags: str | None, saturates: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert saturates_int8(cpuinfo, machine=machine) is saturates


def test_a_named_processor_saturates_or_not_whatever_this_one_does() -> None:
    assert {p: p.saturates for p in Processor if p is not Processor.HERE} == {
        Processor.X86: True, Processor.X86_VNNI: False, Processor.ARM: False,
    }  # fmt: skip
    assert Processor.HERE.saturates is saturates_int8()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "__init__.py").write_text("1\n")
    run(tmp_path, "init", "-q")
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


class TestCommit:
    def test_it_says_whether_the_source_was_changed_since(self, checkout: Path) -> None:
        run(checkout, "add", ".")
        run(checkout, "commit", "-qm", "one", "--no-verify")
        clean = commit(checkout)
        assert clean is not None
        assert len(clean) == 12
        (checkout / "__init__.py").write_text("2\n")
        assert commit(checkout) == f"{clean}-dirty"

    def test_a_package_inside_somebody_elses_repository_has_none(self, checkout: Path) -> None:
        (checkout / "other.py").write_text("1\n")
        run(checkout, "add", "other.py")
        run(checkout, "commit", "-qm", "one", "--no-verify")
        assert commit(checkout) is None

    def test_outside_git_there_is_none(self, tmp_path: Path) -> None:
        assert commit(tmp_path) is None
