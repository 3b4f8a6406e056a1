"""Rows of results → plots of time and memory against N, one line per provider."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from results import FORWARD_AND_BACKWARD, OURS, OURS_LEAN, RIVALS, Row

# Okabe and Ito's colours: told apart with any colour vision, and in grey by their markers.
STYLES = {
    OURS: ("#D55E00", "o", "mmcore"),
    OURS_LEAN: ("#E69F00", "v", "mmcore, workspace 0"),
    "torch-eager": ("#0072B2", "s", "open_clip, eager"),
    "torch-compile": ("#009E73", "D", "open_clip, torch.compile"),
    "torch-linear-cross-entropy": ("#CC79A7", "^", "linear_cross_entropy"),
}
INK, FAINT, GREY = "#222222", "#E4E4E4", "#666666"
# Between the baselines of two labels at the right edge, as a share of the axis' height.
LABEL_GAP = 0.065
# A log axis has no zero; no figure is measured more finely than this.
SMALLEST = 0.1
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


@dataclass(frozen=True)
class Plot:
    """What one plot shows of its rows."""

    op: str
    figure: str
    title: str
    ticks: dict[float, str]
    # Percentiles drawn as a band, and whether mmcore's points say how far the best rival is.
    band: tuple[str, str] | None = None
    has_advantages: bool = False


CLIP_TIME = Plot(
    op="clip",
    figure="time_ms_p50",
    title="Time of the CLIP loss, forward and backward",
    ticks={1: "1 ms", 10: "10 ms", 100: "100 ms", 1e3: "1 s", 1e4: "10 s", 1e5: "100 s"},
    band=("time_ms_p20", "time_ms_p80"),
    has_advantages=True,
)
SIGLIP_TIME = replace(CLIP_TIME, op="siglip", title="Time of the SigLIP loss, forward and backward")
CLIP_MEMORY = Plot(
    op="clip",
    figure="peak_mib",
    title="Memory of the CLIP loss above inputs and gradients",
    ticks={1: "1 MiB", 10: "10 MiB", 100: "100 MiB", 1024: "1 GiB", 10240: "10 GiB"},
)


def comparable_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of one line each: the whole step in float32, at the width with most sizes."""
    whole = [
        row
        for row in rows
        if row.mode == FORWARD_AND_BACKWARD and row.dtype == "float32" and row.is_usual()
    ]
    if not whole:
        return []
    sizes_at = Counter(row.shape["width"] for row in whole)
    width = max(sizes_at, key=lambda width: (sizes_at[width], width))
    return [row for row in whole if row.shape["width"] == width]


def draw(plot: Plot, rows: Sequence[Row], path: Path) -> None:
    """Write one plot; rows are comparable, and of one machine."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(8, 4.8), dpi=160, facecolor="white")
        axes = figure.add_axes((0.09, 0.11, 0.64, 0.72))
        style_axes(axes, plot, rows)
        ends = {}
        for provider in (*RIVALS, OURS_LEAN, OURS):  # ours last, so on top
            points = points_of(rows, provider, plot.figure)
            if points:
                draw_line(axes, plot, rows, provider, points)
                ends[provider] = points[-1]
        label_ends(axes, ends)
        if plot.has_advantages:
            label_advantages(axes, plot, rows)
        figure.text(0.02, 0.945, plot.title, fontsize=13, fontweight="bold")
        figure.text(0.02, 0.92, subtitle(plot, rows), fontsize=9.5, color=GREY, va="top")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the version in the metadata, equal plots are equal files.
        figure.savefig(path, metadata={"Software": None})


def points_of(rows: Sequence[Row], provider: str, figure: str) -> list[tuple[float, float]]:
    """(N, figure) wherever the provider was measured."""
    found = [(row.shape["rows"], row.figure(provider, figure)) for row in rows]
    return [(size, max(value, SMALLEST)) for size, value in found if value is not None]


def draw_line(
    axes: Axes, plot: Plot, rows: Sequence[Row], provider: str, points: list[tuple[float, float]]
) -> None:
    """One provider: its line, its markers, and the band between its percentiles."""
    color, marker, _ = STYLES[provider]
    sizes, values = zip(*points, strict=True)
    width, order = (2.6, 4) if provider == OURS else (1.5, 3)
    axes.plot(sizes, values, color=color, marker=marker, lw=width, ms=5.5, zorder=order)
    if plot.band is not None:
        lows, highs = ([y for _, y in points_of(rows, provider, name)] for name in plot.band)
        axes.fill_between(sizes, lows, highs, color=color, alpha=0.15, lw=0, zorder=2)


def style_axes(axes: Axes, plot: Plot, rows: Sequence[Row]) -> None:
    """Log-log axes with a tick at every N, quiet grid lines and no box."""
    sizes = sorted({row.shape["rows"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{int(size):,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator(list(plot.ticks)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plot.ticks[value]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("N, pairs in the batch", color=GREY)
    axes.grid(axis="y", color=FAINT, lw=0.8)
    axes.margins(y=0.1)
    axes.tick_params(length=0, which="both")
    axes.spines[["top", "right", "left"]].set_visible(False)


def label_advantages(axes: Axes, plot: Plot, rows: Sequence[Row]) -> None:
    """Below each of mmcore's points, how far the best rival is behind: log axes hide factors."""
    for row in rows:
        ours, advantage = row.figure(OURS, plot.figure), row.advantage(plot.figure)
        if ours is None or advantage is None or math.isinf(advantage):
            continue
        axes.annotate(
            f"{advantage:.1f}×",
            xy=(row.shape["rows"], max(ours, SMALLEST)),
            xytext=(4, -9),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color=STYLES[OURS][0],
        )


def label_ends(axes: Axes, ends: dict[str, tuple[float, float]]) -> None:
    """Name every line beside its end, in its colour, moved apart where names would overlap."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    heights = {name: (math.log(y) - low) / (high - low) for name, (_, y) in ends.items()}
    for name, height in spread_apart(heights).items():
        color, _, label = STYLES[name]
        axes.annotate(
            label,
            xy=ends[name],
            xytext=(1.05, height),
            textcoords=axes.transAxes,
            color=color,
            va="center",
            fontweight="bold" if name == OURS else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "ls": ":", "shrinkA": 1, "shrinkB": 6},
        )


def spread_apart(heights: dict[str, float]) -> dict[str, float]:
    """Heights at least LABEL_GAP apart: those too close stand around their common middle."""
    groups: list[list[str]] = []
    starts: list[float] = []
    for name in sorted(heights, key=lambda name: heights[name]):
        group, start = [name], heights[name]
        while groups and start < starts[-1] + len(groups[-1]) * LABEL_GAP:
            group = groups.pop() + group
            starts.pop()
            middle = sum(heights[each] for each in group) / len(group)
            start = middle - (len(group) - 1) / 2 * LABEL_GAP
        groups.append(group)
        starts.append(start)
    return {
        name: start + index * LABEL_GAP
        for group, start in zip(groups, starts, strict=True)
        for index, name in enumerate(group)
    }


def subtitle(plot: Plot, rows: Sequence[Row]) -> str:
    """What the lines have in common."""
    line = next(iter(rows[0].lines.values()))
    advantages = "; 2.0×: the best rival takes twice as long" if plot.has_advantages else ""
    return (
        f"D = {rows[0].shape['width']}, {rows[0].dtype}, {line['processor']}, "
        f"{line['instruction_set'].upper()}, {line['threads']} threads."
        f"\nLower is better{advantages}."
    )
