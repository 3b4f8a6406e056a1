"""Rewrite the README's benchmark tables and the plots: python benchmarks/report.py [--check].

A table stands between `<!-- benchmark:clip-cpu -->` and `<!-- /benchmark:clip-cpu -->`. What is
between them is made from benchmarks/results/*.jsonl and from nothing else; of several machines, the
one with the most cases is shown, in EVERY_MACHINE each.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import plots
from objective_table import objectives_block
from results import Line, Row, latest_rows, load_lines
from tables import accuracy_block, memory_block, time_block

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

OPS = ("clip", "siglip", "nt_xent", "sup_con", "project", "l2_normalize")
# Marker → kind of line, operations, and the function that renders their rows.
BLOCKS: dict[str, tuple[str, tuple[str, ...], Callable[[Sequence[Row]], str]]] = {
    "clip-cpu": ("time", ("clip",), time_block),
    "siglip-cpu": ("time", ("siglip",), time_block),
    "nt-xent-cpu": ("time", ("nt_xent",), time_block),
    "sup-con-cpu": ("time", ("sup_con",), time_block),
    "project-cpu": ("time", ("project",), time_block),
    "l2-normalize-cpu": ("time", ("l2_normalize",), time_block),
    "memory-cpu": ("memory", OPS, memory_block),
    "accuracy-cpu": ("accuracy", OPS, accuracy_block),
    "objectives-cpu": ("objective", (), objectives_block),
}
# Ratios of these depend on how a processor's multiply-adds compare with all else.
EVERY_MACHINE = ("objectives-cpu",)
PLOTS = {
    "clip-cpu": plots.CLIP_TIME,
    "siglip-cpu": plots.SIGLIP_TIME,
    "memory-cpu": plots.CLIP_MEMORY,
}
MARKED = re.compile(
    r"(<!-- benchmark:(?P<name>[\w-]+) -->\n).*?(<!-- /benchmark:(?P=name) -->)", re.DOTALL
)


def rows_of(lines: Sequence[Line], marker: str) -> list[Row]:
    """The rows behind one marker, operation after operation."""
    kind, ops, _ = BLOCKS[marker]
    # Those of one kind that name no operations take all there are, in the order of measurement.
    ops = ops or tuple(dict.fromkeys(line["op"] for line in lines if line["kind"] == kind))
    return [row for op in ops for row in latest_rows(lines, kind, op)]


def by_machine(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each machine, the last measured first: figures of two are not compared."""
    places: dict[str, list[Row]] = {}
    for row in sorted(rows, key=Row.date, reverse=True):
        places.setdefault(row.place(), [])
    for row in rows:
        places[row.place()].append(row)
    return list(places.values())


def of_best_machine(rows: Sequence[Row]) -> list[Row]:
    """The rows of the machine with the most cases; of several the one that was measured last."""
    return max(by_machine(rows), key=len, default=[])


def plotted_rows(rows: Sequence[Row], marker: str) -> list[Row]:
    """What a plot shows, if there is one; two sizes are a table, not a line."""
    if marker not in PLOTS:
        return []
    comparable = plots.comparable_rows([row for row in rows if row.op == PLOTS[marker].op])
    return comparable if len(comparable) > 2 else []


def plot_name(marker: str, rows: Sequence[Row]) -> str:
    """The file name of a plot."""
    return f"{marker}-{rows[0].place()}.png"


def render_block(lines: Sequence[Line], marker: str, images: Path) -> str:
    """What stands between the markers: plot, table and notes."""
    machines = by_machine(rows_of(lines, marker))
    if not machines:
        return "No measurements yet."
    rows = of_best_machine(rows_of(lines, marker))
    shown_machines = machines if marker in EVERY_MACHINE else [rows]
    table = "\n\n".join(BLOCKS[marker][2](of_one) for of_one in shown_machines)
    shown = plotted_rows(rows, marker)
    if not shown:
        return table
    alternative = f"{PLOTS[marker].title}, against N"
    return f"![{alternative}]({images.as_posix()}/{plot_name(marker, shown)})\n\n{table}"


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
        if shown := plotted_rows(of_best_machine(rows_of(lines, marker)), marker):
            path = folder / plot_name(marker, shown)
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
