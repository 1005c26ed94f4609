"""The report says what the results say: every number, nothing invented, and nothing that a browser must fetch."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compressor.errors import ArtifactError
from compressor.report import report
from compressor.report.charts import LONGEST, latency_bars
from compressor.report.headline import headline_row
from compressor.results.artifact import Results
from compressor.words import count, digits, multiple, plain, scaled, size, tiny
from tests.support.page import Page

HOSTILE = "<script>alert('x')</script>|`a`*b*_c_\n\"&amp;"
SECTIONS = ("result", "clock", "accuracy", "widths", "left-alone", "proof", "retraining", "lineage", "environment")


def bench_row(
    runtime: str,
    batch: int,
    candidate: str,
    median_ms: float,
    *,
    speedup: tuple[float, float, float] | None,
    correct: int | None = None,
) -> dict[str, Any]:
    small = candidate == "small"
    return {
        "runtime": runtime,
        "provider": "CPUExecutionProvider" if runtime.startswith("onnx") else runtime,
        "batch": batch,
        "candidate": candidate,
        "median_ms": median_ms,
        "p90_ms": median_ms * 1.031,
        "p99_ms": median_ms * 1.173,
        "throughput": 1000 * batch / median_ms,
        "peak_memory_bytes": 181_300_000 if small else 212_400_000,
        "samples_ns": [[int(median_ms * 1e6) + 1000 * block + call for call in range(4)] for block in range(5)],
        "file_bytes": 301_220 if small else 1_112_450,
        "params": 71_066 if small else 272_186,
        "macs": 8_013_000 if small else 31_210_000,
        "accuracy": None if correct is None else {"correct": correct, "total": 10_000, "split": "test"},
        "speedup": None if speedup is None else dict(zip(("ratio", "low", "high"), speedup, strict=True)),
        "theoretical_speedup": 3.8949 if small else 1.0,
    }


def setting(runtime: str, batch: int, dense_ms: float, small: tuple[float, float, float]) -> list[dict[str, Any]]:
    return [
        bench_row(runtime, batch, "dense", dense_ms, speedup=None, correct=9312),
        bench_row(runtime, batch, "dense again", dense_ms * 1.002, speedup=(0.998, 0.987, 1.009)),
        bench_row(runtime, batch, "masked weights", dense_ms * 1.02, speedup=(0.981, 0.963, 1.006), correct=9254),
        bench_row(runtime, batch, "masked channels", dense_ms * 0.99, speedup=(1.012, 0.991, 1.031), correct=4127),
        bench_row(runtime, batch, "small", dense_ms / small[0], speedup=small, correct=9218),
    ]


@pytest.fixture
def results() -> dict[str, Any]:
    widths = [
        {"layer": "conv1", "kind": "Conv2d", "in": [1, 1], "out": [16, 8], "macs": [112_896, 56_448]},
        {"layer": "layer1.0.conv1", "kind": "Conv2d", "in": [16, 8], "out": [24, 12], "macs": [1_806_336, 451_584]},
        {"layer": "fc", "kind": "Linear", "in": [64, 32], "out": [10, 10], "macs": [640, 320]},
    ]
    environment = {"python": "3.13.1", "torch": "2.9.9", "cpu": "Example CPU", "cores": 6, "commit": "abc1234"}
    history = [
        {"epoch": 0, "rate": 0.0098, "train_loss": 0.5123, "tune_correct": 899, "tune_total": 1017},
        {"epoch": 1, "rate": 0.00011, "train_loss": 0.3312, "tune_correct": 911, "tune_total": 1017},
    ]
    return {
        "schema": 1,
        "name": "fashion_resnet20",
        "command": "compress prune fashion_resnet20.pt --ratio 0.5",
        "environment": environment,
        "prune": {
            "requested": {"ratio": 0.52},
            "achieved": {"channels": [688, 344], "params": [272_186, 71_066], "macs": [31_210_000, 8_013_000]},
            "criterion": "l1-norm",
            "scope": "uniform",
            "align": 8,
            "seed": 1977,
            "proof": {"dtype": "float64", "largest_relative_difference": 3.14e-16, "inputs": "random"},
            "widths": widths,
            "left_alone": [{"layer": "fc", "reason": "its channels are the network's output"}],
        },
        "retrain": [{"how": "fine-tune", "epochs": 2, "data": "some images", "images": 9123, "history": history}],
        "export": {
            "opset": 20,
            "bytes": 302_555,
            "largest_relative_difference": 4.21e-7,
            "batches": 3,
            "batch_sizes": [1, 4],
            "dynamic_batch": True,
        },
        "bench": {
            "environment": {**environment, "load_average": 1.92},
            "threads": 2,
            "blocks": 5,
            "rows": [
                *setting("torch-eager", 64, 171.2, (4.18, 4.11, 4.25)),
                *setting("onnxruntime-cpu", 64, 98.4, (2.58, 2.49, 2.66)),
                *setting("onnxruntime-cpu", 1, 1.842, (2.31, 2.27, 2.35)),
            ],
            "caveats": ["the machine was loaded: 2.4 processes waited for 2 cores"],
        },
        "evaluate": [
            {
                "model": "dense",
                "data": "D",
                "split": "test",
                "correct": 9312,
                "total": 10_000,
                "low": 0.9261,
                "high": 0.936,
            },
            {
                "model": "small",
                "data": "D",
                "split": "test",
                "correct": 9218,
                "total": 10_000,
                "low": 0.9164,
                "high": 0.9269,
            },
        ],
        "lineage": [{"step": "train", "epochs": 30, "sha256": "9f2c41a7"}, {"step": "prune", "ratio": 0.52}],
    }


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(results: dict[str, Any]) -> tuple[str, str]:
        files = report(Results.from_json(results), tmp_path / "out", artifact=Path("fashion_resnet20.compressed"))
        return files.html.read_text(encoding="utf-8"), files.markdown.read_text(encoding="utf-8")

    return written


def squeezed(text: str) -> str:
    return " ".join(text.replace("\\", "").split())


def numbers_in(value: object, *, place: str = "") -> list[tuple[str, float]]:
    if isinstance(value, bool):
        return []
    if isinstance(value, (int, float)):
        return [(place, value)]
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in numbers_in(inner, place=f"{place}.{key}")]
    if isinstance(value, list):
        return [found for i, inner in enumerate(value) for found in numbers_in(inner, place=f"{place}[{i}]")]
    return []


def wordings(value: float) -> set[str]:
    said = {plain(value), digits(value), digits(value, significant=4), tiny(value), f"{value:.2f}", f"{value:.3f}"}
    said |= {f"{100 * value:.2f}", multiple(value)}
    if isinstance(value, int):
        said |= {count(value), scaled(value), size(value), str(value)}
    return {" ".join(words.split()) for words in said}


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_every_number_of_the_results_appears(results: dict[str, Any], write: Any, form: str) -> None:
    html, markdown = write(results)
    text = Page(html).text if form == "html" else squeezed(markdown)
    results.pop("schema")
    shown = [
        (place, value) for place, value in numbers_in(results) if "samples_ns" not in place and "].epoch" not in place
    ]
    assert len(shown) > 150
    lost = [
        (place, value)
        for place, value in shown
        if not any(re.search(rf"(?<![\d.,]){re.escape(words)}(?![\d])", text) for words in wordings(value))
    ]
    assert lost == []


def test_golden_words_stand_in_the_page_and_in_the_markdown(results: dict[str, Any], write: Any) -> None:
    html, markdown = write(results)
    for text in (Page(html).text, squeezed(markdown)):
        for words in (
            "2.31×",
            "interval 2.27 to 2.35",
            "as fast as the dense model, measured",
            "0.98× (0.96 to 1.01)",
            "31.2 M",
            "272,186",
            "92.18 %",
            "9,312 and 9,218 of 10,000, test split",
            "3.14 × 10⁻¹⁶",
            "4.21 × 10⁻⁷",
            "its channels are the network's output",
            "the machine was loaded",
            "compress prune fashion_resnet20.pt --ratio 0.5",
        ):
            assert words in text


def test_the_headline_is_the_onnx_file_at_the_smallest_batch_and_not_the_best_setting(results: dict[str, Any]) -> None:
    row = headline_row(Results.from_json(results).bench)
    assert row is not None
    assert (row.runtime, row.batch) == ("onnxruntime-cpu", 1)


@pytest.mark.parametrize(
    ("speedup", "said"),
    [
        ((1.031, 0.972, 1.093), "no significant difference in latency between the small and the dense model"),
        ((0.771, 0.752, 0.794), "the small model is slower"),
    ],
)
def test_a_headline_that_is_no_gain_says_so(
    results: dict[str, Any], write: Any, speedup: tuple[float, ...], said: str
) -> None:
    results["bench"]["rows"] = [
        row
        | (
            {"speedup": dict(zip(("ratio", "low", "high"), speedup, strict=True))}
            if row["candidate"] == "small"
            else {}
        )
        for row in results["bench"]["rows"]
    ]
    html, markdown = write(results)
    assert said in Page(html).text
    assert said in squeezed(markdown)
    assert "as fast as the dense model, measured" not in Page(html).text


def test_a_failed_null_check_is_said_beside_the_headline(results: dict[str, Any], write: Any) -> None:
    for row in results["bench"]["rows"]:
        if row["candidate"] == "dense again":
            row["speedup"] = {"ratio": 1.04, "low": 1.02, "high": 1.06}
    assert "null check failed" in Page(write(results)[0]).text


def test_nothing_measured_is_said_with_the_commands_that_would_measure_it(write: Any) -> None:
    html, markdown = write({"schema": 1, "name": "fresh"})
    page = Page(html)
    assert set(SECTIONS) <= set(page.ids)
    for command in ("bench", "export", "retrain", "evaluate"):
        assert f"compress {command} fashion_resnet20.compressed" in page.text
        assert f"compress {command} fashion_resnet20.compressed" in squeezed(markdown)
    assert "compress prune MODEL" in page.text
    assert page.drawings == []
    assert "×" not in page.text.split("Glossary")[0]


@pytest.mark.parametrize("section", ["prune", "retrain", "export", "bench", "evaluate", "lineage", "environment"])
def test_each_section_may_be_missing_alone(results: dict[str, Any], write: Any, section: str) -> None:
    del results[section]
    page = Page(write(results)[0])
    assert set(SECTIONS) <= set(page.ids)
    assert "None" not in page.text


@pytest.mark.parametrize(
    "key", ["speedup", "p90_ms", "p99_ms", "throughput", "peak_memory_bytes", "samples_ns", "accuracy"]
)
def test_unknown_is_absent_and_not_zero(results: dict[str, Any], write: Any, key: str) -> None:
    for row in results["bench"]["rows"]:
        row[key] = None
    text = Page(write(results)[0]).text
    assert "None" not in text
    assert not re.search(r"(?<![\d.,])0 (ms|B)\b", text)


def test_hostile_names_stay_text(results: dict[str, Any], write: Any) -> None:
    results |= {"name": HOSTILE, "command": HOSTILE}
    results["prune"]["widths"][0]["layer"] = HOSTILE
    results["prune"]["left_alone"][0] = {"layer": HOSTILE, "reason": HOSTILE}
    results["bench"]["caveats"] = [HOSTILE]
    results["bench"]["rows"] = [row | {"runtime": HOSTILE} for row in results["bench"]["rows"]]
    results["retrain"][0]["how"] = HOSTILE
    results["lineage"][0][HOSTILE] = HOSTILE
    html, markdown = write(results)
    page = Page(html)
    assert "script" not in page.tags
    assert page.text.count("<script>alert('x')</script>") >= 6
    assert all("<script" not in re.sub(r"`[^\n]*`|\\<", "", line) for line in markdown.splitlines())
    cells = {
        len(re.findall(r"(?<!\\)\|", line))
        for line in markdown.split("Layer by layer")[1].split("##")[0].splitlines()
        if line
    }
    assert len(cells - {0}) == 1


def test_the_page_is_well_formed_and_needs_nothing_beside_it(results: dict[str, Any], write: Any) -> None:
    html, _ = write(results)
    page = Page(html)
    assert len(set(page.ids)) == len(page.ids)
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not re.search(r"https?:|url\(|@import|@font-face", html)


def test_every_drawing_says_what_it_shows(results: dict[str, Any], write: Any) -> None:
    page = Page(write(results)[0])
    assert len(page.drawings) > 10
    assert page.titled == len(page.drawings)
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.drawings)


def test_a_bar_is_as_long_as_the_latency_is_to_dense(results: dict[str, Any]) -> None:
    rows = [r for r in Results.from_json(results).bench.rows if (r.runtime, r.batch) == ("onnxruntime-cpu", 1)]  # type: ignore[union-attr]  # the fixture has a bench
    drawn = latency_bars("onnxruntime-cpu", [(1, rows)])
    widths = {
        look: float(width) for width, look in re.findall(r'width="([\d.]+)" height="[\d.]+" class="bar (\w+)"', drawn)
    }
    assert widths["small"] / widths["dense"] == pytest.approx(1 / 2.31, rel=2e-3)


def test_a_bar_beyond_the_scale_is_cut_and_marked(results: dict[str, Any]) -> None:
    rows = setting("onnxruntime-cpu", 1, 2.0, (0.2, 0.19, 0.21))
    results["bench"]["rows"] = rows
    found = Results.from_json(results).bench
    assert found is not None
    drawn = latency_bars("onnxruntime-cpu", [(1, found.rows)])
    widths = {
        look: float(width) for width, look in re.findall(r'width="([\d.]+)" height="[\d.]+" class="bar (\w+)"', drawn)
    }
    assert widths["small"] / widths["dense"] == pytest.approx(LONGEST, rel=2e-3)
    assert "»" in drawn


def test_masked_networks_are_told_that_zeros_save_no_time(results: dict[str, Any], write: Any) -> None:
    statement = "sparse storage saves disk, not time"
    tensor = {
        "name": "conv1.weight",
        "encoding": "bitmask",
        "elements": 144,
        "kept": 80,
        "dense_bytes": 576,
        "stored_bytes": 338,
    }
    results["mask"] = {
        "sparsity": 0.9,
        "rows": [tensor],
        "dense_bytes": 576,
        "stored_bytes": 338,
        "statement": statement,
    }
    del results["prune"]
    results["bench"]["rows"] = [r for r in results["bench"]["rows"] if r["candidate"] in {"dense", "masked weights"}]
    text = Page(write(results)[0]).text
    assert "Sparse storage saves disk, not time." in text
    assert "between the masked and the dense model" in text


def test_events_during_training_are_told_one_by_one(results: dict[str, Any], write: Any) -> None:
    first = {"epoch": 1, "chosen": {"conv1": [3, 5], "fc": [0]}, "before": 800, "after": 640, "instability": 0.2}
    second = {"epoch": 2, "chosen": {"conv1": [7]}, "before": 0, "after": 9, "instability": None}
    events = [{**event, "total": 1017} for event in (first, second)]
    results["while_training"] = {
        "start": 1, "end": 2, "every": 1, "regrow": False, "epochs": 2, "notes": [], "mean_stability": 80.0,
        "events": events, "history": results["retrain"][0]["history"],
    }  # fmt: skip
    html, markdown = write(results)
    assert "| 1 | 3 | 800 / 1,017 (78.66 %) | 640 / 1,017 (62.93 %) | 20.00 % |" in squeezed(markdown)
    assert "| 2 | 1 | 0 / 1,017 (0.00 %) | 9 / 1,017 (0.88 %) | – |" in squeezed(markdown)
    for text in (Page(html).text, squeezed(markdown)):
        assert "Pruned while training" in text
        assert "80.00 %" in text
    assert "chosen" not in markdown
    events[0]["before"] = "many"
    with pytest.raises(ArtifactError, match=r"while_training.events\[0\].before"):
        write(results)


def test_without_labels_agreement_is_not_called_accuracy(results: dict[str, Any], write: Any) -> None:
    results["evaluate"] = [{"model": "small", "data": "D", "agreeing": 981, "total": 1000, "relative_error": 0.0413}]
    for row in results["bench"]["rows"]:
        row["accuracy"] = None
    text = Page(write(results)[0]).text
    assert "981 / 1,000 answered as dense does" in text
    assert "accuracy 9" not in text


def test_entries_of_a_newer_writer_are_shown_and_not_dropped(results: dict[str, Any], write: Any) -> None:
    results["energy"] = {"joules_per_sample": 0.125}
    results["prune"]["rounds"] = 7
    text = Page(write(results)[0]).text
    assert "joules per sample 0.125" in text
    assert re.search(r"rounds\s*7", text)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("bench", "rows", 3, "median_ms"), "fast", "results.bench.rows[3].median_ms"),
        (("prune", "widths", 1, "out"), [1], "results.prune.widths[1].out"),
        (("bench", "rows"), 7, "results.bench.rows"),
        (("evaluate", 0, "correct"), 20_000, "20000 out of 10000"),
        (("schema",), 99, "schema 99"),
        (("bench", "rows", 0, "candidate"), None, "`candidate`"),
        (("bench", "rows", 3, "samples_ns", 1), [None], "results.bench.rows[3].samples_ns"),
        (("bench", "rows", 3, "samples_ns", 1), 7, "results.bench.rows[3].samples_ns"),
    ],
)
def test_a_broken_entry_is_refused_by_its_place(
    results: dict[str, Any], tmp_path: Path, place: tuple[Any, ...], value: object, said: str
) -> None:
    inner: Any = results
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ArtifactError, match=re.escape(said)):
        report(Results.from_json(results), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written"):
        report(Results.from_json(results), tmp_path / "file")


def test_the_same_results_give_the_same_bytes_and_are_left_as_they_were(
    results: dict[str, Any], tmp_path: Path
) -> None:
    before = copy.deepcopy(results)
    first = report(Results.from_json(results), tmp_path / "a")
    second = report(Results.from_json(results), tmp_path / "b", artifact=tmp_path / "a")
    assert results == before
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.markdown.read_bytes() == second.markdown.read_bytes()
    assert Results.from_json(json.loads(second.results.read_text())) == Results.from_json(results)


def test_results_that_are_there_already_keep_their_bytes(results: dict[str, Any], tmp_path: Path) -> None:
    there = tmp_path / "results.json"
    there.write_text(json.dumps(results))
    before = there.read_bytes()
    report(Results.from_json(results), tmp_path)
    assert there.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md", "results.json"]


def test_the_command_prints_the_paths_that_it_wrote(results: dict[str, Any], pruned: Path) -> None:
    from compressor.cli.main import app

    (pruned / "tiny.compressed" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    told = CliRunner().invoke(app, ["report", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["html"] == "tiny.compressed/report.html"
    told = CliRunner().invoke(app, ["report", "tiny.compressed", "--out", "pages"])
    assert told.stdout.split() == ["wrote", "pages/report.html", "wrote", "pages/report.md"]
    assert (pruned / "pages" / "report.html").exists()


def test_a_bound_next_to_one_keeps_the_digit_that_tells_its_side(results: dict[str, Any], write: Any) -> None:
    results["bench"]["rows"][-1]["speedup"] = {"ratio": 1.031, "low": 1.002, "high": 1.06}
    assert "1.031× (1.002 to 1.060)" in Page(write(results)[0]).text
