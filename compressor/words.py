"""Numbers in words: units, digits and signs, the same in the terminal, in HTML and in Markdown; computes nothing.

A unit follows its number after a no-break space, which a terminal shows as a space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from compressor.results.changes import SurgeryProof
from compressor.results.quality import Counted, Quality, Score
from compressor.results.timing import Speedup
from compressor.results.training import EpochRecord

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SPACE = "\N{NO-BREAK SPACE}"  # between a number and its unit
DASH = "–"  # not measured

LABELS = {
    "bytes": "file size",
    "dtype": "precision",
    "narrowest": "narrowest precision on the way",
    "tolerance": "largest difference that is rounding",
    "moved": "what the removed channels move the output by",
    "vacuous": "has seen nothing",
    "macs": "MACs",
    "params": "parameters",
    "cpu": "CPU",
    "gpu": "GPU",
}

VACUOUS = (
    "the proof has seen nothing: on its inputs the removed channels change no output. Either they are dead, or these "
    "inputs never reach them; inputs of your own are given by `--input` or `--data`"
)


def milliseconds(value: float) -> str:
    """Three significant digits: `0.0437 ms`, `1.84 ms`, `1,234 ms`."""
    return f"{digits(value)}{SPACE}ms"


def digits(value: float, *, significant: int = 3) -> str:
    """A positive number with as many decimals as its significant digits need, never in scientific notation."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    exponent = int(f"{value:.{significant - 1}e}".split("e")[1])  # after rounding: 9.996 is 10.0, not 10.00
    return f"{value:,.{max(0, significant - 1 - exponent)}f}"


def multiple(ratio: float, *, decimals: int = 2) -> str:
    """A ratio with its sign: `2.31×`."""
    return f"{ratio:.{decimals}f}×"


def decimals_of(speedup: Speedup) -> int:
    """Two decimals, or three where two would blur on which side of 1 a bound lies."""
    return 3 if any(f"{bound:.2f}" == "1.00" and bound != 1 for bound in (speedup.low, speedup.high)) else 2


def interval(speedup: Speedup) -> str:
    """The interval alone: `2.20 to 2.41`."""
    decimals = decimals_of(speedup)
    return f"{speedup.low:.{decimals}f} to {speedup.high:.{decimals}f}"


def speedup_with_interval(speedup: Speedup) -> str:
    """The ratio and its interval: `2.31× (2.20 to 2.41)`."""
    return f"{multiple(speedup.ratio, decimals=decimals_of(speedup))} ({interval(speedup)})"


def ratio_in_table(speedup: Speedup | None) -> str:
    """As `speedup_with_interval`, with a short mark where no difference was found, and a dash for the reference."""
    if speedup is None:
        return DASH
    return speedup_with_interval(speedup) + ("" if speedup.resolved else f"{SPACE}n.{SPACE}s.")


def finding(speedup: Speedup | None) -> str:
    """What a speed-up says: the ratio, or that no difference was found; nothing of the reference, which has none."""
    if speedup is None:
        return ""
    if not speedup.resolved:
        return f"no significant difference ({interval(speedup)})"
    return speedup_with_interval(speedup) + (", slower" if speedup.ratio < 1 else "")


def count(value: int) -> str:
    """A whole number, exactly: `272,474`."""
    return f"{value:,}"


def scaled(value: float, *, unit: str = "") -> str:
    """A large number in thousands, millions or billions: `40.8 M`."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{digits(value / size)}{SPACE}{prefix}{unit}"
    return f"{value:,}{SPACE}{unit}" if unit else f"{value:,}"


def size(value: int) -> str:
    """Bytes in decimal units: `1.13 MB`."""
    return scaled(value, unit="B")


def percent(share: float, *, decimals: int = 2) -> str:
    """A share in [0, 1] as a percentage: `92.53 %`."""
    return f"{100 * share:.{decimals}f}{SPACE}%"


def counted(quality: Quality) -> str:
    """Both whole numbers of what is counted: `9,253 / 10,000`; else the samples: `600 samples`."""
    if isinstance(quality, Counted):
        return f"{count(quality.count)}{SPACE}/{SPACE}{count(quality.total)}"
    return f"{count(quality.total)}{SPACE}samples"


def scored(quality: Quality) -> str:
    """A share as a percentage, with no more digits than the total can tell apart; another score in its unit."""
    if not quality.is_share:
        return _in_unit(digits(quality.value, significant=4), quality)
    return percent(quality.value, decimals=2 if quality.total >= 1000 else 1)


def score_interval(quality: Quality) -> str:
    """The reading's interval: `92.01 to 93.03 %`."""
    if not quality.is_share:
        low, high = (digits(bound, significant=4) for bound in quality.interval)
        return f"{low} to {_in_unit(high, quality)}"
    decimals = 2 if quality.total >= 1000 else 1
    return f"{100 * quality.low:.{decimals}f} to {percent(quality.high, decimals=decimals)}"


def _in_unit(number: str, quality: Quality) -> str:
    unit = quality.unit if isinstance(quality, Score) else ""
    return f"{number}{SPACE}{unit}" if unit else number


def tuned(epoch: EpochRecord) -> str:
    """What an epoch reached on the tuning split: `91.65 %`, `mIoU 0.713`."""
    if epoch.metric is None:
        return percent(epoch.tuned)
    return f"{epoch.metric} {digits(epoch.tuned)}"


def tiny(value: float) -> str:
    """A relative difference: `1.1 × 10⁻¹⁶`; `0` is said to be exact."""
    if value == 0:
        return "0 (exactly equal)"
    if 1e-2 <= abs(value) < 1e4:
        return digits(value)
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}{SPACE}×{SPACE}10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def proof_in_words(proof: SurgeryProof) -> str:
    """A surgery proof as one line: the difference, and what it is judged by."""
    types = f"in {proof.dtype}"
    if proof.narrowest not in (None, proof.dtype):
        types += f", of which the network computes a part in {proof.narrowest}"
    tolerance = "" if proof.tolerance is None else f" (at most {tiny(proof.tolerance)} is rounding)"
    return f"{tiny(proof.largest_relative_difference or 0.0)} relative, {types}{tolerance}"


def label(key: str) -> str:
    """A JSON key as words: `largest_relative_difference` → `largest relative difference`."""
    return LABELS.get(key, key.replace("_", " "))


def plain(value: object, *, key: str = "") -> str:
    """Any JSON value in one line; the key tells bytes and differences from other numbers."""
    if value is None:
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return size(value) if key.endswith("bytes") else (str(value) if key in {"seed", "opset"} else count(value))
    if isinstance(value, float):
        return tiny(value) if "difference" in key or "error" in key or abs(value) < 1e-3 else f"{value:g}"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "; ".join(f"{label(str(k))} {plain(v, key=str(k))}" for k, v in value.items()) or "none"
    if isinstance(value, Sequence):
        if any(isinstance(v, (Mapping, list)) for v in value):
            return json.dumps(value, ensure_ascii=False, default=str)
        return ", ".join(plain(v, key=key) for v in value) or "none"
    return str(value)
