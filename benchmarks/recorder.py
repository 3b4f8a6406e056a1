"""Measurements → the terminal, and JSON lines in a results file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from machine import now


class Measured(Protocol):
    """What a result line says of its subject: a case, or anything else that has these."""

    op: str
    shape: Mapping[str, int | float]
    dtype: str


@dataclass(frozen=True)
class Recorder:
    """Prints measurements and appends them to the results file, if there is one."""

    path: Path | None
    provenance: dict[str, object]

    def record(
        self, kind: str, provider: str, case: Measured, figures: Mapping[str, object]
    ) -> None:
        """One measurement: one printed line, one JSON line."""
        line = {
            "kind": kind,
            "op": case.op,
            "provider": provider,
            "shape": case.shape,
            "dtype": case.dtype,
            **figures,
            **self.provenance,
            "date": now(),
        }
        shown = [f"{name} {show(it)}" for name, it in figures.items() if is_worth_showing(name, it)]
        print(f"  {provider:<27}", *shown, sep="  ", flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def is_worth_showing(name: str, figure: object) -> bool:
    """Whether a figure goes to the terminal as well: eager's errors have a line of their own."""
    return name != "mode" and figure != "" and not name.startswith("eager_")


def show(figure: object) -> str:
    """A figure for the terminal."""
    if isinstance(figure, float):
        return f"{figure:.4g}" if abs(figure) < 1e4 else f"{figure:.0f}"
    return "unknown" if figure is None else str(figure)
