"""Rewrite the pages' benchmark tables and the plots: python benchmarks/report.py [--check].

A table stands between `<!-- benchmark:clip-cpu -->` and `<!-- /benchmark:clip-cpu -->`, in
README.md or docs/performance.md. What is between them is made from benchmarks/results/*.jsonl and
from nothing else.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import plots
from objective_table import objectives_block
from results import Line, Row, latest_rows, load_lines
from summary import SUMMARY_OPS, summary_block
from tables import accuracy_block, memory_block, time_block

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

OPS = ("clip", "siglip", "nt_xent", "sup_con", "project", "l2_normalize")
PAGES = (REPOSITORY / "README.md", REPOSITORY / "docs" / "performance.md")
IMAGES = REPOSITORY / "docs" / "images"
PLOTS = {
    "clip-cpu": plots.CLIP_TIME,
    "siglip-cpu": plots.SIGLIP_TIME,
    "memory-cpu": plots.CLIP_MEMORY,
}


def by_machine(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each machine, the last measured first: figures of two are not compared."""
    places: dict[str, list[Row]] = {}
    for row in sorted(rows, key=Row.date, reverse=True):
        places.setdefault(row.place(), [])
    for row in rows:
        places[row.place()].append(row)
    return list(places.values())


def of_best_machine(rows: Sequence[Row]) -> list[list[Row]]:
    """Of the machine with the most cases; of several the one that was measured last."""
    return [max(by_machine(rows), key=len)]


def of_all_machines(rows: Sequence[Row]) -> list[list[Row]]:
    """All rows in one table, for blocks that tell machines apart themselves."""
    return [list(rows)]


def no_tables(rows: Sequence[Row]) -> list[list[Row]]:
    """For a plot alone."""
    return []


class Block(NamedTuple):
    """What stands between two markers: rows of results, a table of each group, and a plot."""

    kind: str
    ops: tuple[str, ...]  # none: all that have lines of the kind, in the order of measurement
    table: Callable[[Sequence[Row]], str]
    groups: Callable[[Sequence[Row]], list[list[Row]]] = of_best_machine
    plot: str | None = None


BLOCKS = {
    "plot-cpu": Block("time", ("clip",), time_block, no_tables, "clip-cpu"),
    "summary-cpu": Block("time", SUMMARY_OPS, summary_block, of_all_machines),
    "clip-cpu": Block("time", ("clip",), time_block, by_machine, "clip-cpu"),
    "siglip-cpu": Block("time", ("siglip",), time_block, by_machine, "siglip-cpu"),
    "nt-xent-cpu": Block("time", ("nt_xent",), time_block, by_machine),
    "sup-con-cpu": Block("time", ("sup_con",), time_block, by_machine),
    "project-cpu": Block("time", ("project",), time_block, by_machine),
    "l2-normalize-cpu": Block("time", ("l2_normalize",), time_block, by_machine),
    "memory-cpu": Block("memory", OPS, memory_block, plot="memory-cpu"),
    "accuracy-cpu": Block("accuracy", OPS, accuracy_block),
    "objectives-cpu": Block("objective", (), objectives_block, by_machine),
}
MARKED = re.compile(
    r"(<!-- benchmark:(?P<name>[\w-]+) -->\n).*?(<!-- /benchmark:(?P=name) -->)", re.DOTALL
)


def rows_of(lines: Sequence[Line], block: Block) -> list[Row]:
    """The rows behind one marker, operation after operation."""
    found = dict.fromkeys(line["op"] for line in lines if line["kind"] == block.kind)
    return [row for op in block.ops or found for row in latest_rows(lines, block.kind, op)]


def plotted_rows(rows: Sequence[Row], name: str) -> list[Row]:
    """The machine with the most sizes on one line; two sizes are a table, not a line."""
    of_op = [row for row in rows if row.op == PLOTS[name].op]
    comparable = [plots.comparable_rows(of_one) for of_one in by_machine(of_op)]
    longest = max(comparable, key=len, default=[])
    return longest if len(longest) > 2 else []


def plot_name(name: str, rows: Sequence[Row]) -> str:
    """The file name of a plot."""
    return f"{name}-{rows[0].place()}.png"


def render_block(lines: Sequence[Line], marker: str, images: Path) -> str:
    """What stands between the markers: plot, tables and notes."""
    block = BLOCKS[marker]
    rows = rows_of(lines, block)
    if not rows:
        return "No measurements yet."
    parts = [block.table(group) for group in block.groups(rows)]
    if block.plot and (shown := plotted_rows(rows, block.plot)):
        alternative = f"{PLOTS[block.plot].title}, against N"
        parts.insert(0, f"![{alternative}]({images.as_posix()}/{plot_name(block.plot, shown)})")
    return "\n\n".join(parts)


def rewrite(text: str, lines: Sequence[Line], images: Path) -> str:
    """A page with every marked block made anew; `images` is relative to the page."""

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
    """Write every plot that a page may show."""
    for name in PLOTS:
        if shown := plotted_rows(rows_of(lines, BLOCKS[name]), name):
            path = folder / plot_name(name, shown)
            plots.draw(PLOTS[name], shown, path)
            print(f"drew {path.name}")


def main() -> int:
    """Rewrite, or with --check say whether rewriting would change anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if stale")
    parser.add_argument("--results", type=Path, nargs="+", help="default: benchmarks/results")
    parser.add_argument("--pages", type=Path, nargs="+", default=PAGES, help="Markdown files")
    parser.add_argument("--images", type=Path, default=IMAGES, help="the folder of the plots")
    arguments = parser.parse_args()
    stale = []
    try:
        lines = load_lines(arguments.results or sorted(RESULTS.glob("*.jsonl")))
        for page in arguments.pages:
            before = page.read_text(encoding="utf-8")
            images = Path(os.path.relpath(arguments.images, page.parent))
            after = rewrite(before, lines, images)
            stale += [page.name] if before != after else []
            if not arguments.check:
                page.write_text(after, encoding="utf-8")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if arguments.check:
        print(f"stale: {', '.join(stale)}" if stale else "up to date")
        return int(bool(stale))
    draw_plots(lines, arguments.images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
