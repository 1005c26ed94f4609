"""What to run for the parts that nobody has measured yet."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from compressor.report.document import Code, Paragraph, Tone


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """The commands that would measure what is missing, for one artifact."""

    artifact: Path

    @property
    def prune(self) -> str:
        """Shrinks a checkpoint."""
        return "compress prune MODEL --ratio 0.5"

    @property
    def retrain(self) -> str:
        """Trains the small network."""
        return f"compress retrain {self._folder} --how fine-tune --epochs 3"

    @property
    def export(self) -> str:
        """Writes and checks the ONNX file."""
        return f"compress export {self._folder} --onnx"

    @property
    def bench(self) -> str:
        """Measures latencies."""
        return f"compress bench {self._folder}"

    @property
    def evaluate(self) -> str:
        """Measures accuracy."""
        return f"compress evaluate {self._folder} --data DIR"

    @property
    def _folder(self) -> str:
        return shlex.quote(self.artifact.name or ".")

    def missing(self, what: str, command: str) -> Paragraph:
        """Says that a part is missing, and how to get it."""
        return Paragraph(text=(f"{what} The command for it: ", Code(content=command)), tone=Tone.MISSING)
