"""A trained network from wherever it lies: a checkpoint's file, or an artifact's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.checkpoint.architectures import architecture_from_user
from compressor.checkpoint.artifacts import load_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.reading import load_file, with_inputs
from compressor.graph.input_spec import InputSpec


def load(
    path: Path | str,
    *,
    arch: str | None = None,
    arch_arguments: tuple[tuple[str, object], ...] = (),
    inputs: Sequence[str | InputSpec] = (),
    trust_pickle: bool = False,
) -> Checkpoint:
    """The network at `path`: a pickled module, a state in any of the usual wrappings, an exported program, an artifact.

    `arch` says how the module is built, where the file does not. `inputs` say what it reads, as text
    (`ids=1x12:int64<50`) or as values. A network in half or double precision is computed with in float32. Refused: what
    is not there, broken or foreign; a pickle that could run code; weights that do not fit or are not finite; a shape
    that the network does not run on.
    """
    path = Path(path)
    if not path.is_dir():
        return load_file(path, arch=arch, arch_arguments=arch_arguments, inputs=inputs, trust_pickle=trust_pickle)
    if arch is not None:  # an artifact knows how it is built: this says that the user trusts that code
        architecture_from_user(arch, arch_arguments)
    return with_inputs(load_artifact(path, trust_pickle=trust_pickle), inputs)
