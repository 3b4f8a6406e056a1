"""The figures of the README and the pages are those of the results (benchmarks/report.py)."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmcore import functional, metrics, nn, report

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = " ".join(README.split())
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))
if not RESULTS:
    pytest.skip("a source distribution has no results", allow_module_level=True)
TIME = "time_ms_p50"
Modules = dict[str, ModuleType]
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def benchmarks() -> Modules:
    """The modules that make the tables; benchmarks/ is a folder of scripts, no package."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return {name: importlib.import_module(name) for name in ("report", "results")}
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in set(sys.modules) - before:
            if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.fixture(scope="module")
def lines(benchmarks: Modules) -> Lines:
    return benchmarks["results"].load_lines(RESULTS)


def test_the_tables_are_those_of_the_results(benchmarks: Modules, lines: Lines) -> None:
    """Catches results without `make report` after them, and tables that were edited by hand."""
    pages = benchmarks["report"].PAGES
    assert [page.name for page in pages] == ["README.md", "performance.md"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        images = Path("docs/images" if page.parent == ROOT else "images")
        assert benchmarks["report"].rewrite(text, lines, images) == text
    markers = set(re.findall("<!-- benchmark:(.+?) -->", "".join(p.read_text() for p in pages)))
    assert markers == set(benchmarks["report"].BLOCKS)


def test_every_plot_is_shown_and_every_shown_plot_exists() -> None:
    """Catches a plot of a machine that is shown no more, and a page with a broken picture."""
    pages = README + (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    shown = {Path(path).name for path in re.findall(r"!\[.*?\]\((.*?)\)", pages)}
    assert shown == {path.name for path in (ROOT / "docs" / "images").iterdir()}


def test_the_readme_is_short_and_has_five_rows_of_performance() -> None:
    """Catches a README that grows back."""
    assert len(README.splitlines()) <= 130
    block = README.partition("<!-- benchmark:summary-cpu -->")[2].partition("<!-- /")[0]
    assert len([line for line in block.splitlines() if line.startswith("| `")]) == 5
    losses = README.partition("## Which loss")[2].partition("\n## ")[0]
    assert len([line for line in losses.splitlines() if line.startswith("| ")]) == 8 + 1


def of_clip(benchmarks: Modules, lines: Lines, size: int, **options: str) -> list[Any]:
    """Rows of the whole step of CLIP with D = 512 and this N."""
    rows = benchmarks["results"].latest_rows(lines, "time", "clip", **options)
    whole = benchmarks["results"].FORWARD_AND_BACKWARD
    return [
        row
        for row in rows
        if row.is_usual() and row.mode == whole
        if (row.shape["rows"], row.shape["width"]) == (size, 512)
    ]


def test_the_claim_of_speed(benchmarks: Modules, lines: Lines) -> None:
    """Catches a claim that newer results, or those of another machine, do not bear out."""
    sizes = (1024, 2048, 4096, 8192, 16384)
    rows = [row for size in sizes for row in of_clip(benchmarks, lines, size)]
    rows = [row for row in rows if row.dtype == "float32" and row.advantage(TIME)]
    advantages = [row.advantage(TIME) for row in rows]
    assert f"{min(advantages):.1f} to {max(advantages):.1f} times as long" in PROSE
    assert len({row.place() for row in rows}) == 4
    assert "on four processors" in PROSE
    small = [row for row in of_clip(benchmarks, lines, 128) if row.dtype == "float32"]
    assert f"({min(row.advantage(TIME) for row in small):.2f}×)" in PROSE


def test_the_limit_of_speed_on_a_gpu(benchmarks: Modules, lines: Lines) -> None:
    """Catches figures of the H100 that are not in its results."""
    for size in (32768, 4096):
        (row,) = of_clip(benchmarks, lines, size, device="gpu")
        ours, compiled = (row.figure(name, TIME) for name in ("mmcore-triton", "torch-compile"))
        assert f"{ours:.1f} ms (torch.compile {compiled:.1f})" in PROSE


def test_the_claim_of_memory(benchmarks: Modules, lines: Lines) -> None:
    """Catches memory that is not what the page of all figures shows."""
    rows = benchmarks["results"].latest_rows(lines, "memory", "clip")
    rows = [row for row in rows if row.shape["rows"] == 65536 and "-avx512-" in row.place()]
    full, bfloat16 = (row for row in rows if row.machine == "amd-epyc-2c-avx512")
    default, lean = (full.figure(name, "peak_mib") for name in ("mmcore-cpu", "mmcore-cpu-lean"))
    assert f"need {default:.0f} MiB above features and gradients, or {lean:.0f} MiB" in PROSE
    rival = full.figure("torch-linear-cross-entropy", "peak_mib")
    assert f"stores no logits either, with {rival:.0f} MiB" in PROSE
    peak = bfloat16.figure("mmcore-cpu", "peak_mib")
    assert f"bfloat16 features need {peak:.0f} MiB" in PROSE
    assert f"their logits is {4 * 65536**2 / 1e9:.0f} GB" in PROSE


def test_the_claim_of_exactness(benchmarks: Modules, lines: Lines) -> None:
    """Catches a count of errors that leaves out a machine."""
    ratios = [
        row.error_ratio(quantity)
        for op in benchmarks["report"].OPS
        for row in benchmarks["results"].latest_rows(lines, "accuracy", op)
        for quantity in {name for line in row.lines.values() for name in line}
        if quantity.startswith("error_") and row.error_ratio(quantity) is not None
    ]
    smaller = [ratio for ratio in ratios if ratio <= 1]
    assert f"Of {len(ratios)} measured errors, {len(smaller)} are no larger" in PROSE


def test_the_reference_page_is_complete() -> None:
    """Catches a public name or an environment variable that the page does not name."""
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    names = [f"functional.{name}" for name in functional.__all__ if name.islower()]
    names += [f"metrics.{name}" for name in metrics.__all__]
    names += [f"nn.{name}" for name in nn.__all__ if not name.endswith("Loss")]
    assert not [name for name in names if f"`{name}`" not in page]
    assert not [name for name in report.VARIABLES if f"\n| {name} |" not in page]
