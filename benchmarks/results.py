"""Result lines, read back: the latest line of every case and provider."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import usual

Line = dict[str, Any]

FORWARD_AND_BACKWARD = "forward+backward"
OURS = "mmcore-cpu"
OURS_LEAN = "mmcore-cpu-lean"
OURS_FULL = "mmcore-cpu-full"
RIVALS = (
    "torch-eager",
    "torch-eager-blocks",
    "torch-compile",
    "torch-linear-cross-entropy",
    "lightly",
    "pytorch-metric-learning",
    "open_clip",
    "sentence-transformers",
)
SIZE_SYMBOLS = {
    "rows": "N",
    "input_width": "K",
    "width": "D",
    "scale": "scale",
    "pair_cosine": "pair cosine",
}
# Pages of the system's own come and go: below this, memory is as good as none.
FINEST_MEASURED = {"peak_mib": 1.0}
# Lines with one of these among their options are experiments, and no figures of the machine.
EXPERIMENTS = ("MMCORE_CPU_ISA", "MMCORE_WORKSPACE")


@dataclass
class Row:
    """One case: the latest line of each provider that was measured on it."""

    machine: str
    threads: int
    op: str
    mode: str
    dtype: str
    shape: dict[str, float]
    lines: dict[str, Line] = field(default_factory=dict)

    def place(self) -> str:
        """The machine and its threads: figures of two places are not compared."""
        return f"{self.machine}-{self.threads}t"

    def date(self) -> str:
        """When the newest of its lines was measured."""
        return max(str(line["date"]) for line in self.lines.values())

    def figure(self, provider: str, name: str) -> float | None:
        """A figure of a provider; None where it was not measured."""
        value = self.lines.get(provider, {}).get(name)
        return None if value is None else float(value)

    def best_rival(self, name: str) -> str | None:
        """The rival whose figure of that name is smallest."""
        figures = {rival: self.figure(rival, name) for rival in RIVALS}
        measured = {rival: figure for rival, figure in figures.items() if figure is not None}
        return min(measured, key=lambda rival: measured[rival]) if measured else None

    def advantage(self, name: str, provider: str = OURS) -> float | None:
        """How many times smaller mmcore's figure is than the best rival's."""
        rival = self.best_rival(name)
        ours = self.figure(provider, name)
        theirs = self.figure(rival, name) if rival else None
        if ours is None or theirs is None:
            return None
        finest = FINEST_MEASURED.get(name, 0.0)
        ours, theirs = max(ours, finest), max(theirs, finest)
        return theirs / ours if ours > 0 else math.inf

    def error_ratio(self, quantity: str) -> float | None:
        """mmcore's error over eager's; None where either is missing or eager is exact."""
        ours, eager = self.figure(OURS, quantity), self.figure(OURS, f"eager_{quantity}")
        return ours / eager if ours is not None and eager else None

    def has_mixed_runs(self) -> bool:
        """Whether the providers were measured in different runs, so not interleaved."""
        return len({line["run"] for line in self.lines.values()}) > 1

    def sizes(self) -> str:
        """For example `N = 8,192, D = 512`."""
        shown = [
            f"{SIZE_SYMBOLS[name]} = {size:,}"
            for name, size in self.shape.items()
            if name != "scale" or not self.has_usual_scale()
        ]
        return ", ".join(shown)

    def has_usual_scale(self) -> bool:
        """Whether the scale is the operation's usual one, so that no row needs to name it."""
        usual_scale = usual.SCALES.get(self.op)
        return self.shape.get("scale", usual_scale) == usual_scale

    def is_usual(self) -> bool:
        """Whether nothing but the sizes was chosen."""
        return self.has_usual_scale() and "pair_cosine" not in self.shape

    def label(self) -> str:
        """The operation with its sizes and dtype, for tables that hold several operations."""
        return f"`{self.op}`, {self.sizes_and_dtype()}"

    def sizes_and_dtype(self) -> str:
        """The sizes, and the dtype where it is not float32."""
        return self.sizes() + ("" if self.dtype == "float32" else f", {self.dtype}")


def load_lines(paths: Iterable[Path]) -> list[Line]:
    """All result lines of the files, oldest first."""
    lines: list[Line] = []
    for path in paths:
        for number, text in enumerate(path.read_text().splitlines(), start=1):
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name} line {number} must be JSON: {error}") from error
    return sorted(lines, key=lambda line: str(line["date"]))


def latest_rows(lines: Iterable[Line], kind: str, op: str, device: str = "cpu") -> list[Row]:
    """A row per case, ordered by machine, mode, dtype and size; later lines replace earlier.

    Lines of other devices are left out: a line that names none is of a CPU.
    """
    rows: dict[str, Row] = {}
    for line in lines:
        if (line["kind"], line["op"], line.get("device", "cpu")) != (kind, op, device):
            continue
        if any(name in line.get("options", "") for name in EXPERIMENTS):
            continue
        case = [line[key] for key in ("machine", "threads", "op", "mode", "dtype", "shape")]
        row = rows.setdefault(json.dumps(case), Row(*case))
        row.lines[line["provider"]] = line
    return sorted(rows.values(), key=reading_order)


def reading_order(row: Row) -> tuple[object, ...]:
    """Machines apart, the whole step before the forward pass, float32 first, then by size."""
    pair_cosine = row.shape.get("pair_cosine", usual.PAIR_COSINE)
    widths = (row.shape.get("input_width", 0), row.shape["width"])
    widths = (*widths, row.shape.get("scale", 0), pair_cosine)
    whole_step_first = row.mode != FORWARD_AND_BACKWARD
    float32_first = row.dtype != "float32"
    return (row.machine, row.threads, whole_step_first, float32_first, *widths, row.shape["rows"])
