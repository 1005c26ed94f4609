"""An artifact whose recipe was edited is refused, by the file and the field; an old one is read and says what it is."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.checkpoint.artifact_recipe import recipe_sha256, sealed
from compressor.checkpoint.artifacts import load_artifact, open_artifact, sha256_of
from compressor.errors import ArtifactError, CompressError
from compressor.files.atomic import save_tensors
from tests.attacks import good_files
from tests.support.command_line import done, run

Edit = Callable[[dict[str, Any]], object]
KINDS = {
    "class": good_files.of_class,
    "skeleton": good_files.of_skeleton,
    "program": good_files.of_program,
    "sparse": good_files.sparse,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good artifact of each kind, in `KIND/a`."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_STATE_DIR", str(folder / "state"))
        for kind, make in KINDS.items():
            (folder / kind).mkdir()
            patch.chdir(folder / kind)
            make(folder / kind)
    return folder


@pytest.fixture
def artifact(written: Path, workdir: Path) -> Callable[[str], Path]:
    shutil.copytree(written / "state", workdir / "state")

    def copied(kind: str) -> Path:
        return Path(shutil.copytree(written / kind / "a", workdir / f"{kind}.compressed"))

    return copied


def edit(folder: Path, change: Edit, *, seal: bool = False) -> None:
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    change(recipe)
    (folder / "recipe.json").write_text(json.dumps(sealed(recipe) if seal else recipe), encoding="utf-8")


def make_old(folder: Path) -> None:
    """As a former version wrote it: schema 1, a hash of the files alone, no mark in the weights."""
    from safetensors.torch import load_file

    save_tensors(load_file(folder / "model.safetensors"), folder / "model.safetensors")

    def older(recipe: dict[str, Any]) -> None:
        del recipe["sha256"]
        recipe["schema"] = 1
        recipe["files"]["model.safetensors"] = sha256_of(folder / "model.safetensors")

    edit(folder, older)


def swap_operator(recipe: dict[str, Any]) -> None:
    nodes = recipe["surgery"]["program"]["nodes"]
    calls = [node for node in nodes if node.get("call", "").startswith("aten.relu")]
    calls[0]["call"] = "aten.sigmoid.default"


class TestTheHash:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_good_one_is_read(self, artifact: Callable[[str], Path], kind: str) -> None:
        folder = artifact(kind)
        assert load_artifact(folder).sha256 == open_artifact(folder).recipe["sha256"]
        assert open_artifact(folder).caveats == ()

    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            ("program", swap_operator),
            ("program", lambda r: r["surgery"]["program"]["trainable"].clear()),
            ("class", lambda r: r["surgery"]["attributes"]["body.0"].update(out_channels=9)),
            ("class", lambda r: r["preprocessing"].update(mean=[0.5], std=[0.5])),
            ("class", lambda r: r.update(classes=["cat", "dog"])),
            ("class", lambda r: r["architecture"].update(arguments=[["width", 8]])),
            ("class", lambda r: r["source"].update(sha256="0" * 64)),
            ("class", lambda r: r.update(input=[[1, 1, 32, 32]])),
            ("sparse", lambda r: r.update(name="other")),
            ("skeleton", lambda r: r.update(lineage=[])),
        ],
    )  # fmt: skip
    def test_covers_everything_that_is_computed_with(
        self, artifact: Callable[[str], Path], kind: str, change: Edit
    ) -> None:
        folder = artifact(kind)
        edit(folder, change)
        with pytest.raises(ArtifactError, match="was changed since it was written") as told:
            load_artifact(folder)
        assert told.value.hint

    def test_is_of_the_network_and_not_of_where_it_lay(self, artifact: Callable[[str], Path]) -> None:
        folder = artifact("class")
        edit(folder, lambda r: r["source"].update(path="/moved/net.pt"))
        load_artifact(folder)

    @pytest.mark.parametrize("files", [{}, {"other": "0" * 64}, {"../../model.safetensors": "0" * 64}])
    @pytest.mark.parametrize("schema", [1, 2])
    def test_needs_the_files_that_are_read(
        self, artifact: Callable[[str], Path], files: dict[str, str], schema: int
    ) -> None:
        folder = artifact("class")
        if schema == 1:
            make_old(folder)
        edit(folder, lambda r: r.update(files=files), seal=schema == 2)
        with pytest.raises(ArtifactError, match="`files` lists"):
            load_artifact(folder)

    def test_weights_beside_it_that_it_does_not_list_are_not_read(self, artifact: Callable[[str], Path]) -> None:
        folder = artifact("class")
        expected = {k: v.clone() for k, v in load_artifact(folder).module.state_dict().items()}
        shutil.copytree(artifact("sparse") / "sparse", folder / "sparse")
        assert {k: v.tolist() for k, v in load_artifact(folder).module.state_dict().items()} == {
            k: v.tolist() for k, v in expected.items()
        }
        assert open_artifact(folder).mask() is None

    def test_an_old_one_is_read_and_says_that_its_hash_covers_less(self, artifact: Callable[[str], Path]) -> None:
        folder = artifact("class")
        make_old(folder)
        assert load_artifact(folder).sha256 == recipe_sha256(open_artifact(folder).recipe)
        for command in (["inspect", folder], ["export", folder], ["report", folder]):
            assert "schema 1: its hash covers its files" in done(*command).stderr
        page = (folder / "report.md").read_text(encoding="utf-8")
        assert "its hash covers its files" in page

    @pytest.mark.parametrize("drop", [True, False])
    def test_a_new_one_does_not_pass_for_an_old_one(self, artifact: Callable[[str], Path], drop: bool) -> None:
        folder = artifact("program")

        def older(recipe: dict[str, Any]) -> None:
            recipe["schema"] = 1
            if drop:
                del recipe["sha256"]
            swap_operator(recipe)

        edit(folder, older)
        with pytest.raises(ArtifactError, match="schema" if drop else "`sha256` is not a field"):
            load_artifact(folder)


DEEP: Any = 0
for _ in range(80):
    DEEP = [DEEP]
VALUES: list[Any] = [None, True, -1, 0, 2**70, 1.5, "", "x" * 300, "\ud800", [], [[]], {}, {"a": 1}, [None], DEEP]
MAY = {
    *((field, "None") for field in ("classes", "training")), ("classes", "[]"), ("input", "[[]]"), ("lineage", "[]"),
    ("lineage", "[{}]"),
}  # fmt: skip
FIELDS = (
    "name", "architecture", "source", "input", "dtypes", "preprocessing", "classes", "training", "surgery", "lineage",
    "files", "schema",
)  # fmt: skip


class TestTheForm:
    @pytest.mark.parametrize("field", FIELDS)
    def test_a_field_that_is_missing_or_of_another_kind_is_one_refusal_that_names_it(
        self, artifact: Callable[[str], Path], field: str
    ) -> None:
        folder = artifact("class")
        good = (folder / "recipe.json").read_bytes()
        for value in (..., *VALUES):
            (folder / "recipe.json").write_bytes(good)
            edit(folder, lambda r, v=value: r.pop(field) if v is ... else r.update({field: v}), seal=field != "source")  # type: ignore[misc]
            with pytest.raises(CompressError) if (field, repr(value)) not in MAY else contextlib.nullcontext() as told:
                load_artifact(folder)
            if told is not None:
                assert told.value.hint
                assert len(str(told.value).splitlines()) == 1

    def test_the_field_is_named_with_its_place(self, artifact: Callable[[str], Path]) -> None:
        folder = artifact("program")
        edit(
            folder,
            lambda r: r["surgery"]["program"]["constants"].update(c={"dtype": "float32", "shape": [-1], "values": []}),
            seal=True,
        )
        with pytest.raises(ArtifactError, match=r"recipe\.json: `surgery\.program\.constants\.c\.shape\[0\]`"):
            load_artifact(folder)

    @pytest.mark.parametrize(
        "change",
        [
            lambda r: r["surgery"]["attributes"].update({"no.such.layer": {"out_channels": 3}}),
            lambda r: r["surgery"]["attributes"].update({"body.0": {"forward": 3}}),
            lambda r: r["surgery"]["slices"].update({"body.0.weight": {"0": [99999]}}),
            lambda r: r["surgery"]["slices"].update({"body.0.weight": {"9": [0]}}),
            lambda r: r["surgery"]["slices"].update({"no.such.tensor": {"0": [0]}}),
            lambda r: r["surgery"].update(emptied=["no.such.layer"]),
            lambda r: r["surgery"].update(factors={"no.such": {"kind": "svd", "rank": 1}}),
            lambda r: r["surgery"].update(factors={"body.0": {"kind": "svd", "rank": 10**6}}),
        ],
    )
    def test_a_surgery_of_another_network_is_refused(self, artifact: Callable[[str], Path], change: Edit) -> None:
        folder = artifact("class")
        edit(folder, change, seal=True)
        with pytest.raises(CompressError):
            load_artifact(folder)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"{", "cannot read"),
            (b"\xff\xfe{}", "cannot read"),
            (b"[1, 2]", "no JSON object"),
            (b'{"a": NaN}', "NaN is no number"),
            (b'{"a": -Infinity}', "no number"),
            (b'{"a": 1e999}', "no finite number"),
            (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
            (b'{"a": 1, "a": 2}', "stands twice"),
            (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
            (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested too deep"),
        ],
    )
    @pytest.mark.parametrize("file", ["recipe.json", "results.json"])
    def test_json_that_is_none_is_refused(
        self, artifact: Callable[[str], Path], content: bytes, says: str, file: str
    ) -> None:
        folder = artifact("class")
        (folder / file).write_bytes(content)
        told = run("report", folder)
        assert told.exit_code == 1
        assert says in told.stderr
        assert file in told.stderr
        assert "hint: " in told.stderr


def test_a_program_with_an_infinite_constant_is_written_and_read(workdir: Path) -> None:
    import torch

    from compressor.graph.recorded import numbers_from, tensor_from

    for tensor in (
        torch.tensor([[1.0, -torch.inf], [torch.nan, 0.0]]),
        torch.tensor([1 + 2j, complex("inf")]),
        torch.tensor([True, False]),
        torch.tensor([2**62]),
    ):
        dtype = str(tensor.dtype).removeprefix("torch.")
        plain = {"dtype": dtype, "shape": list(tensor.shape), "values": numbers_from(tensor)}
        again = tensor_from(json.loads(json.dumps(plain, allow_nan=False)))
        assert torch.equal(torch.nan_to_num(again), torch.nan_to_num(tensor))
        assert again.dtype == tensor.dtype
    assert list(workdir.iterdir()) == []
