"""Every model type of transformers: `python -m benchmarks.transformers_coverage [--only NAME,...] [--minutes N]`.

The smallest configuration of each model type that the library registers, without a head where it has such a network,
with random weights that all take effect, goes as far as it gets:

    built     from the config, offline, and run on inputs that the config describes
    exported  `torch.export` takes it
    traced    its channel groups are known
    proved    ratio 0.5 was pruned, and the surgery proof holds (at most 1e-4)
    reloaded  and, for those that `NAMED` lists, exported to ONNX with the same outputs and read back in a fresh process

Each is tried in a process of its own, with a limit of time; one that has been tried is not tried again. Rows are in
`benchmarks/transformers/`: the usual types first, the others in an order by hash.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import re
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.provenance import provenance
from benchmarks.transformers_shrinking import attempts, is_small
from compressor.checkpoint import hugging_face
from compressor.checkpoint.architectures import Architecture
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.errors import CompressError
from compressor.graph.structures import with_plain_outputs_
from compressor.jobs.coverage import Stage, checkpoint_of, coverage_of_checkpoint

FOLDER = Path(__file__).parent / "transformers"
LIMIT_S = 70  # of processor time; a busy machine may take longer
STEPS = ("built", "exported", "traced", "proved", "reloaded")
NAMED = {
    "bert": "BertForSequenceClassification", "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification", "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification", "swin": "SwinForImageClassification", "clip": "CLIPModel",
    "clip_text_model": "CLIPTextModelWithProjection", "clip_vision_model": "CLIPVisionModelWithProjection",
    "whisper": "WhisperEncoder", "wav2vec2": "Wav2Vec2ForCTC", "t5": "T5EncoderModel", "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel", "sam_vision_model": "SamVisionModel", "detr": "DetrForObjectDetection",
}  # fmt: skip

USUAL = (
    "deberta deberta-v2 electra mobilebert bart dinov2 mamba falcon phi qwen2 bloom mpt gpt_neo blip mistral gemma2 "
    "phi3 xlm-roberta camembert beit convnext hubert wavlm mt5 pegasus marian mbart gptj gpt_neox codegen olmo "
    "stablelm starcoder2 cohere layoutlm siglip vit_mae segformer mixtral qwen3 gemma3_text longformer big_bird swinv2 "
    "clipseg convnextv2 focalnet yolos funnel mask2former"
)


def model_types() -> list[str]:
    """Every model type: those of `NAMED`, then those of `USUAL`, the others in an order by hash."""
    with hugging_face.imported():
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        others = sorted(
            set(CONFIG_MAPPING) - {*NAMED, *USUAL.split()}, key=lambda n: hashlib.sha256(n.encode()).hexdigest()
        )
        return [*NAMED, *USUAL.split(), *others]


def class_of(model_type: str) -> str | None:
    """The class of a model type: the one of `NAMED`, the one without a head, or else any that is registered."""
    if model_type in NAMED:
        return NAMED[model_type]
    from transformers.models.auto import modeling_auto

    tables = [name for name in dir(modeling_auto) if re.fullmatch(r"MODEL_\w*MAPPING_NAMES", name)]
    for table in sorted(tables, key=lambda name: name != "MODEL_MAPPING_NAMES"):
        found = getattr(modeling_auto, table).get(model_type)
        if found:
            return str(found[0] if isinstance(found, (tuple, list)) else found)
    return next(iter(hugging_face.classes_of(model_type)), None)


def row_of(model_type: str) -> dict[str, Any]:
    """How far a model type gets, and why not further."""
    row: dict[str, Any] = {"model_type": model_type, "class": None, "reached": None, "why": None}
    row["transformers"] = importlib.metadata.version("transformers")
    started = time.process_time()
    try:
        with hugging_face.imported():
            row["class"] = class_of(model_type)
        checkpoint = _built(model_type, row)
        if checkpoint is not None:
            row["reached"] = "built"
            _further(checkpoint, row, Stage.RELOAD if model_type in NAMED else Stage.PRUNE)
    except Exception as error:  # the library's code can raise anything: the row records it
        row["why"] = row["why"] or f"{type(error).__name__}: {str(error)[:300]}"
        row["traceback"] = traceback.format_exc()[-1500:]
    row["seconds"] = round(time.process_time() - started, 1)
    return row


def _built(model_type: str, row: dict[str, Any]) -> Checkpoint | None:
    """The smallest network that builds and runs."""
    if row["class"] is None:
        row["why"] = "transformers registers no network for it"
        return None
    ref, reasons = f"{model_type}.{row['class']}", []
    for values in attempts(model_type):
        try:
            if not is_small(ref, values):
                reasons.append("its smallest configuration has more than 120 million parameters")
                continue
            architecture = Architecture(ref=f"transformers:{ref}", arguments=tuple(values.items()))
            checkpoint = checkpoint_of(architecture, ())
        except Exception as error:  # as above
            text = str(error) if isinstance(error, CompressError) else f"{type(error).__name__}: {error}"
            reasons.append(text)
            continue
        row["params"] = sum(p.numel() for p in checkpoint.module.parameters())
        row["inputs"] = [spec.shown for spec in checkpoint.input_specs]
        return checkpoint
    row["why"] = reasons[0][:300] if reasons else "no configuration"
    row["reasons"] = [reason[:300] for reason in reasons]
    return None


def _further(checkpoint: Checkpoint, row: dict[str, Any], until: Stage) -> None:
    """The stages after building."""
    result = coverage_of_checkpoint(checkpoint, until=until)
    if result.reached is None and not _is_exportable(checkpoint):
        row["why"] = result.why
        return
    row["reached"] = "exported"
    row["why"] = result.why
    if result.traceback:
        row["traceback"] = result.traceback[-1500:]
    if result.reached is None:
        return
    row["reached"] = "traced"
    row["groups"] = result.groups
    row["left_alone"] = [dict(a) for a in result.left_alone[:12]]
    if result.reached is Stage.PLAN or (result.proof or 0) > 1e-4:
        return
    row["reached"] = "reloaded" if result.reached is Stage.RELOAD else "proved"
    row |= {key: getattr(result, key) for key in ("form", "params", "macs", "proof", "dtype", "moved", "parity")}


def _is_exportable(checkpoint: Checkpoint) -> bool:
    """Whether `torch.export` takes the network as it is."""
    from compressor.graph.copies import copy_of

    try:
        with torch.no_grad():
            torch.export.export(with_plain_outputs_(copy_of(checkpoint.module)), checkpoint.example_inputs)
    except Exception:  # the exporter can raise anything
        return False
    return True


def _child(model_type: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    pipe.send(row_of(model_type) | {"provenance": provenance()})


def in_a_process(model_type: str) -> dict[str, Any]:
    """The row of a model type, from a process of its own that has a limit of time."""
    context = multiprocessing.get_context("fork")  # a copy of this process, which has imported what takes long
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(model_type, there))
    child.start()
    there.close()
    row: dict[str, Any] = {"model_type": model_type, "class": None, "reached": None}
    try:
        while _seconds_of(child.pid) < LIMIT_S:
            if here.poll(1):
                return dict(here.recv())
        row["why"] = f"no end after {LIMIT_S} s"
    except EOFError:
        child.join(10)
        row["why"] = f"the process ended with {child.exitcode}"
    finally:
        child.kill()
        child.join()
    return row | {"provenance": provenance()}


def _seconds_of(process: int | None) -> float:
    """The processor time of a process; none if it has ended, which its pipe then says."""
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def results() -> list[dict[str, Any]]:
    """The rows that exist, by name."""
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many got at least so far."""
    best = Counter(row["reached"] for row in rows)
    return {step: sum(best[later] for later in STEPS[n:]) for n, step in enumerate(STEPS)}


def summary() -> str:
    """How many got how far, as Markdown."""
    rows = results()
    reached = counts(rows)
    lines = ["| model types tried | built | `torch.export` takes it | traced | pruned and proved |", "| --- " * 5 + "|"]
    share = f" ({reached['proved'] / reached['exported']:.0%} of those)" if reached["exported"] else ""
    values = [len(rows), *(reached[step] for step in ("built", "exported", "traced")), f"{reached['proved']}{share}"]
    return "\n".join([*lines, f"| {' | '.join(map(str, values))} |"]) + "\n"


def table() -> str:
    """One row per model type, as Markdown."""
    lines = [
        "| model type | class | reached | form | parameters left | proof | why not further |",
        "| --- " * 7 + "|",
    ]
    for row in results():
        params = row.get("params")
        left = f"{params[1] / params[0]:.0%}" if isinstance(params, list) else ""
        proof = f"{row['proof']:.0e}" if row.get("proof") is not None else ""
        why = " ".join((row.get("why") or "").replace("|", "/").split())[:160]
        cells = (row["model_type"], row["class"] or "", row["reached"] or "-", row.get("form") or "", left, proof, why)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def without_places(text: str) -> str:
    """The text without the folders in which a machine keeps its packages."""
    return re.sub(r"(/[\w.-]+)+/(?=(site-packages|compressor|benchmarks|python3\.\d+)/)", "", text)


def write_page() -> None:
    """Write the page with all rows."""
    (FOLDER / "README.md").write_text(f"# transformers\n\n{__doc__}\n\n{summary()}\n{table()}")


def main() -> None:
    """Try what has no row, one process after the other, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="Model types, separated by commas.")
    parser.add_argument("--again", action="store_true", help="Try those again that were not proved.")
    parser.add_argument("--minutes", type=float, default=1e6, help="Begin no more after so many.")
    parser.add_argument("--page", action="store_true", help="Write the page alone.")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    only = arguments.only.split(",") if arguments.only else None
    end = time.monotonic() + 60 * arguments.minutes
    for model_type in [] if arguments.page else only or model_types():
        path = FOLDER / f"{model_type}.json"
        before = json.loads(path.read_text()) if path.exists() else None
        if before is not None and not (arguments.again and before["reached"] not in ("proved", "reloaded")):
            continue
        if time.monotonic() > end:
            break
        row = in_a_process(model_type)
        path.write_text(without_places(json.dumps(row, indent=1)) + "\n")
        print(model_type, row["reached"], row.get("seconds"), (row.get("why") or "")[:160], flush=True)
    write_page()


if __name__ == "__main__":
    main()
