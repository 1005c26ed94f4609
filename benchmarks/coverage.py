"""Any architecture: `python -m benchmarks.coverage [--zoo torchvision|timm] [--only NAME,...] [--until prune|reload]`.

Every architecture with live random weights goes through the stages of `jobs.coverage`, each in a process of its
own: prune at 0.5 with proof (at most 1e-4), backward, prune again, export (onnxruntime's outputs within 1e-3), reload
in a fresh process.

torchvision: every classification, segmentation and video model, the detectors and RAFT. timm: the smallest variant of
every module that registers models. `deep` means that at most 40 % of the parameters are left (55 % where most of the
weights are those of linear layers). One JSON file per architecture in `benchmarks/coverage/`; one that has been tried
as far as asked is not run again. Seconds are processor time; memory is what the process's peak has grown by when there
is a plan, without what libraries load when they are first used. `--plans` measures both again, and nothing else, in
every row. `compress inspect LIST --report-coverage` does the same for any list.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import provenance
from compressor.checkpoint.architectures import Architecture
from compressor.jobs.coverage import DEEP, DEEP_ATTENTION, Stage, coverage_of

FOLDER = Path(__file__).parent / "coverage"
LIMIT_S = 1800
SIZE, CLASSES = 224, 1000
VIDEO, SMALL_VIDEO, PAIR = "1x3x16x224x224", "1x3x16x112x112", "1x3x128x128"
SHAPES = {
    **dict.fromkeys(("sam2_hiera_tiny", "gemma4_vit_167m"), ("1x3x256x256",)),  # their own are 896 and 768
    **dict.fromkeys(("mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b", "s3d"), (VIDEO,)),
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), (SMALL_VIDEO,)),
    **dict.fromkeys(("raft_small", "raft_large"), (PAIR, PAIR)),
}


def torchvision_names() -> list[str]:
    """Every model that torchvision registers, but for those of quantised weights."""
    import torchvision

    return [n for n in torchvision.models.list_models() if not n.startswith("quantized_")]


def timm_names() -> Iterator[str]:
    """The smallest variant of every module of timm that registers models, by its parameters, one after the other."""
    import timm

    chosen = FOLDER / "timm.json"
    known: dict[str, str] = json.loads(chosen.read_text()) if chosen.exists() else {}
    for module in timm.list_modules():
        if module not in known:
            sizes = {}
            for name in timm.list_models(module=module):
                try:
                    with torch.device("meta"):
                        sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
                except Exception as error:  # some cannot be built on the meta device
                    print(f"# {name}: {type(error).__name__}", flush=True)
            if not sizes:
                continue
            known[module] = min(sizes, key=lambda n: sizes[n])
            chosen.write_text(json.dumps(known, indent=1) + "\n")
        yield known[module]


def arguments_of(zoo: str, name: str) -> tuple[tuple[str, object], ...]:
    """What an architecture is called with: detectors look at their input in its own size.

    Those of two stages let boxes of a random network's low scores through. GoogLeNet is without its auxiliary heads, as
    with published weights. timm's without a head, which give what an
    embedding has and could not lose it, get one of a thousand classes.
    """
    if zoo == "timm":
        import timm

        headless = timm.get_pretrained_cfg(name)
        return (("num_classes", CLASSES),) if headless is not None and headless.num_classes == 0 else ()
    if name in ("googlenet", "inception_v3"):
        return (("init_weights", False), *((("aux_logits", False),) if name == "googlenet" else ()))
    if not any(kind in name for kind in ("rcnn", "retinanet", "fcos")):
        return ()
    own = (("min_size", SIZE), ("max_size", SIZE))
    return (*own, ("box_score_thresh", 0.001)) if "rcnn" in name else own


def cell(zoo: str, name: str, until: Stage) -> dict[str, Any]:
    """How far one architecture gets, and where and why it stops."""
    architecture = Architecture(ref=f"{zoo}:{name}", arguments=arguments_of(zoo, name))
    row = coverage_of(architecture, SHAPES.get(name, ()), until=until).to_json()
    return {"zoo": zoo, "name": name, **row, "left_alone": row["left_alone"][:40]}


def results() -> list[dict[str, Any]]:
    """The raw results."""
    return [json.loads(p.read_text()) for p in sorted(FOLDER.glob("*-*.json"))]


def summary() -> str:
    """One row per zoo, as Markdown."""
    lines = [
        "| zoo | architectures tried | pruned and proved | all the way | deep | seconds to prune | to trace and plan | "
        "memory on top, times the model's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for zoo in ("torchvision", "timm"):
        mine = [r for r in results() if r["zoo"] == zoo]
        proved = [r for r in mine if r["reached"] not in (None, Stage.PLAN)]
        if not proved:
            continue
        counts = (len(proved), sum(r["reached"] == "reload" for r in mine), sum(map(_deep, proved)))
        shares = [f"{n} ({n / len(mine):.0%})" for n in counts]
        seconds = [r["prune_s"] for r in proved]
        planning = [r["plan_s"] for r in proved if r.get("plan_s")]
        memory = [r["plan_bytes"] / r["model_bytes"] for r in proved if r.get("plan_bytes")]
        spreads = [_spread(values) for values in (seconds, planning, memory)]
        lines.append(f"| {zoo} | {len(mine)} | {' | '.join((*shares, *spreads))} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    """Median and largest, and of how many."""
    if not values:
        return "–"
    return f"{statistics.median(values):.1f}, at most {max(values):.1f} (n = {len(values)})"


def table() -> str:
    """One row per architecture, as Markdown."""
    lines = [
        "| architecture | reached | form | parameters left | proof | parity | seconds to prune | why not further |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results():
        share = f"{r['params'][1] / r['params'][0]:.1%}" if r.get("params") else ""
        figures = [f"{r[key]:.1e}" if r.get(key) is not None else "" for key in ("proof", "parity")]
        why = " ".join((r.get("why") or "").replace("|", "/").split())[:160]
        cells = (f"{r['zoo']}: {r['name']}", r["reached"] or "-", r.get("form") or "", share, *figures)
        lines.append(f"| {' | '.join(cells)} | {r.get('prune_s') or 0:.0f} | {why} |")
    return "\n".join(lines) + "\n"


def _deep(row: dict[str, Any]) -> bool:
    return row["params"][1] / row["params"][0] <= (DEEP_ATTENTION if row["attention"] else DEEP)


def main() -> None:
    """Run what has not got as far as asked, one process after the other, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", default="torchvision,timm")
    parser.add_argument("--only", help="Names, separated by commas.")
    parser.add_argument("--until", choices=list(Stage), default=Stage.RELOAD, type=Stage)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="Run what failed once more.")
    parser.add_argument("--plans", action="store_true", help="Measure tracing and planning again, in every row.")
    parser.add_argument("--one", help="One architecture, whose result goes to stdout.")
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        zoo, _, name = arguments.one.partition(":")
        print(json.dumps(cell(zoo, name, arguments.until) | {"provenance": provenance()}))
        return
    FOLDER.mkdir(exist_ok=True)
    for zoo in arguments.zoo.split(","):
        for name in torchvision_names() if zoo == "torchvision" else timm_names():
            path = FOLDER / f"{zoo}-{name}.json"
            before = json.loads(path.read_text()) if path.exists() else None
            if arguments.only and name not in arguments.only.split(","):
                continue
            if arguments.plans:
                if before is not None and "plan_provenance" not in before:
                    row = _in_a_process(zoo, name, Stage.PLAN, arguments.threads)
                    found = {key: row.get(key) for key in ("plan_s", "plan_bytes", "model_bytes")}
                    found["plan_provenance"] = row.get("provenance")
                    path.write_text(json.dumps(before | found, indent=1) + "\n")
                    print(path.stem, found["plan_s"], found["plan_bytes"], row.get("why"), flush=True)
                continue
            done = before is not None and before["until"] in ("reload", arguments.until)
            if done and not (arguments.again and before["reached"] != before["until"]):
                continue
            row = _in_a_process(zoo, name, arguments.until, arguments.threads)
            path.write_text(json.dumps(row, indent=1) + "\n")
            left = f"{row['params'][1] / row['params'][0]:.0%}" if row.get("params") else ""
            said = path.stem, row["reached"], left, f"{row.get('prune_s') or 0:.0f}s", (row.get("why") or "")[:200]
            print(*said, flush=True)
    (FOLDER / "README.md").write_text(f"# Coverage\n\n{__doc__}\n\n{summary()}\n{table()}")


def _in_a_process(zoo: str, name: str, until: Stage, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.coverage", "--one", f"{zoo}:{name}"]
    try:
        done = subprocess.run(
            [*command, "--until", until, "--threads", str(threads)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"zoo": zoo, "name": name, "reached": None, "until": until, "why": f"no end after {LIMIT_S} s"}
    except (IndexError, ValueError):
        return {
            "zoo": zoo,
            "name": name,
            "reached": None,
            "until": until,
            "why": f"the process ended: {done.stderr[-300:]}",
        }
    return found


if __name__ == "__main__":
    main()
