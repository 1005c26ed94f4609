"""Load a trained network: from a checkpoint file, or from an artifact's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.checkpoint.architectures import architecture_from_user
from compressor.checkpoint.artifacts import load_artifact
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.folders import load_folder
from compressor.checkpoint.reading import load_file, with_inputs
from compressor.errors import CheckpointError
from compressor.files.model_folders import is_model_folder
from compressor.graph.input_spec import InputSpec


def load(
    path: Path | str,
    *,
    arch: str | None = None,
    arch_arguments: tuple[tuple[str, object], ...] = (),
    inputs: Sequence[str | InputSpec] = (),
    key: str | None = None,
    outputs: Sequence[str] = (),
    trust_pickle: bool = False,
) -> Checkpoint:
    """Return the network at `path`: a pickled module, a state in any common wrapping, an exported program, an artifact,
    a folder of transformers or timm.

    `arch` is how the module is built, if the file has no record of it. `inputs` are its inputs, as text
    (`ids=1x12:int64<50`) or as values. `outputs` name the outputs that matter: the others may change, and are not
    exported. `key` is where the weights lie in the file, if it has several: one name for each level, with dots between
    them. A network in half or double precision is computed in float32. Refused: a
    missing, broken or foreign file; a pickle that could run code; weights that do not fit or are not finite; a shape
    that the network does not run on.
    """
    path = Path(path)
    if is_model_folder(path):
        if arch is not None:
            raise CheckpointError(
                f"the config in {path} says how the network is built",
                hint=f"leave `--arch` out, or name the weights alone: `{path}/model.safetensors`",
            )
        return load_folder(path, inputs=inputs, outputs=outputs, trust_pickle=trust_pickle)
    if not path.is_dir():
        return load_file(
            path, arch=arch, arch_arguments=arch_arguments, inputs=inputs, outputs=outputs, key=key,
            trust_pickle=trust_pickle,
        )  # fmt: skip
    if outputs:
        raise CheckpointError(
            f"the outputs of {path} were chosen when it was pruned", hint="name them then: `compress prune --outputs`"
        )
    if arch is not None:  # an artifact records how it is built: naming it here records that the user trusts that code
        architecture_from_user(arch, arch_arguments)
    return with_inputs(load_artifact(path, trust_pickle=trust_pickle), inputs)
