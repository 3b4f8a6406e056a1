"""Rewrite the README's benchmark tables and the plots: python benchmarks/report.py [--check].

A table stands between `<!-- benchmark:clip-cpu -->` and `<!-- /benchmark:clip-cpu -->`. What is
between them is made from benchmarks/results/*.jsonl and from nothing else.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import plots
from results import Line, Row, latest_rows, load_lines
from tables import accuracy_block, memory_block, time_block

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

# Marker → kind of line, operations, and the function that renders their rows.
BLOCKS: dict[str, tuple[str, tuple[str, ...], Callable[[Sequence[Row]], str]]] = {
    "clip-cpu": ("time", ("clip",), time_block),
    "project-cpu": ("time", ("project",), time_block),
    "l2-normalize-cpu": ("time", ("l2_normalize",), time_block),
    "memory-cpu": ("memory", ("clip", "project", "l2_normalize"), memory_block),
    "accuracy-cpu": ("accuracy", ("clip", "project", "l2_normalize"), accuracy_block),
}
PLOTS = {"clip-cpu": plots.TIME, "memory-cpu": plots.MEMORY}
MARKED = re.compile(
    r"(<!-- benchmark:(?P<name>[\w-]+) -->\n).*?(<!-- /benchmark:(?P=name) -->)", re.DOTALL
)


def rows_of(lines: Sequence[Line], marker: str) -> list[Row]:
    """The rows behind one marker, operation after operation."""
    kind, ops, _ = BLOCKS[marker]
    return [row for op in ops for row in latest_rows(lines, kind, op)]


def by_machine(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that may stand in one table: figures of two machines are not compared."""

    def key(row: Row) -> str:
        return f"{row.machine}-{row.threads}t"

    return {name: list(group) for name, group in itertools.groupby(sorted(rows, key=key), key)}


def plotted_rows(rows: Sequence[Row]) -> list[Row]:
    """What a plot shows; two sizes are a table, not a line."""
    comparable = plots.comparable_rows([row for row in rows if row.op == "clip"])
    return comparable if len(comparable) > 2 else []


def plot_name(marker: str, machine: str) -> str:
    """The file name of a plot."""
    return f"{marker}-{machine}.png"


def render_block(lines: Sequence[Line], marker: str, images: Path) -> str:
    """What stands between the markers: plot, table and notes of every machine."""
    parts = []
    for machine, rows in by_machine(rows_of(lines, marker)).items():
        if marker in PLOTS and plotted_rows(rows):
            alternative = f"{PLOTS[marker].title}, against N"
            parts.append(f"![{alternative}]({images.as_posix()}/{plot_name(marker, machine)})")
        parts.append(BLOCKS[marker][2](rows))
    return "\n\n".join(parts) or "No measurements yet."


def rewrite(text: str, lines: Sequence[Line], images: Path) -> str:
    """The README with every marked block made anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{render_block(lines, match['name'], images)}\n\n{match[3]}"

    opened = re.findall(r"<!-- benchmark:([\w-]+) -->", text)
    closed = [match["name"] for match in MARKED.finditer(text)]
    if opened != closed:
        raise ValueError(f"every benchmark marker must be closed, got {opened} and {closed}")
    if unknown := set(opened) - set(BLOCKS):
        raise ValueError(f"a marker must be one of {', '.join(BLOCKS)}, got {', '.join(unknown)}")
    return MARKED.sub(block, text)


def draw_plots(lines: Sequence[Line], folder: Path) -> None:
    """Write every plot that the README may show."""
    for marker, plot in PLOTS.items():
        for machine, rows in by_machine(rows_of(lines, marker)).items():
            if shown := plotted_rows(rows):
                path = folder / plot_name(marker, machine)
                plots.draw(plot, shown, path)
                print(f"drew {path.name}")


def main() -> int:
    """Rewrite, or with --check say whether rewriting would change anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if stale")
    parser.add_argument("--results", type=Path, nargs="+", help="default: benchmarks/results")
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "README.md")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="beside README")
    arguments = parser.parse_args()
    if not arguments.readme.is_file():
        parser.error(f"--readme must be a file, got {arguments.readme}")
    before = arguments.readme.read_text()
    try:
        lines = load_lines(arguments.results or sorted(RESULTS.glob("*.jsonl")))
        after = rewrite(before, lines, arguments.images)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if arguments.check:
        print(f"{arguments.readme.name} is {'up to date' if before == after else 'stale'}")
        return int(before != after)
    arguments.readme.write_text(after)
    draw_plots(lines, arguments.readme.parent / arguments.images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
