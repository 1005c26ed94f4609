"""What a network expects of its data: the names, shapes and types of its inputs, and where its tokeniser lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from compressor.data.preprocessing import Preprocessing
from compressor.errors import ArtifactError
from compressor.files.json_files import read_json
from compressor.files.model_folders import RECIPE
from compressor.graph.input_spec import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The inputs of a network, in order, by `specs` with a name, a shape and a type each; none: it is not known.

    `folders` are those in which the network's own tokeniser may lie, `task` is the name of what it is for.
    """

    specs: tuple[InputSpec, ...] = ()
    folders: tuple[Path, ...] = ()
    task: str | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(str(spec.name) for spec in self.specs)


ANYTHING = Expected()


class Read(Protocol):
    """The part of a `Checkpoint` that says what it reads."""

    @property
    def path(self) -> str:
        """Where it was read from."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How an item becomes its inputs."""

    @property
    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs that it runs on."""

    @property
    def input_specs(self) -> tuple[InputSpec, ...]:
        """Their description, if known."""


def expected_by(network: Read, *, takes: Sequence[str] = ()) -> Expected:
    """Return what a checkpoint expects; `takes` are the names of its inputs in another form of it, such as ONNX."""
    names = takes or network.preprocessing.takes
    specs = []
    for number, example in enumerate(network.example_inputs):
        own = network.input_specs[number] if number < len(network.input_specs) else None
        name = names[number] if number < len(names) else str(number)
        below, low = (own.below, own.low) if own is not None else (None, None)
        specs.append(InputSpec(name=name, shape=tuple(example.shape), dtype=example.dtype, low=low, below=below))
    return Expected(specs=tuple(specs), folders=_folders(Path(network.path)))


def _folders(path: Path) -> tuple[Path, ...]:
    """The folder of the network or of its file; of an artifact, the dense network's too."""
    own = path if path.is_dir() else path.parent
    if not (own / RECIPE).is_file():
        return (own,)
    try:
        source: Any = read_json(own / RECIPE).get("source")
    except ArtifactError:
        return (own,)
    dense = source.get("path") if isinstance(source, dict) else None
    if not isinstance(dense, str):
        return (own,)
    try:
        return own, Path(dense) if Path(dense).is_dir() else Path(dense).parent
    except (OSError, ValueError):  # a text that is no path
        return (own,)
