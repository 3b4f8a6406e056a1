"""The picture of a run: digits drawn from what other views know of them, and R@1 by map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from digits import LARGEST_PIXEL, PIXELS, VIEWS
from mmcore.translation import fit_map

SHOWN = 10  # digits, one of each kind
GAP = 3  # white pixels between images
# Okabe and Ito's colours, told apart with every kind of colour vision.
COLOURS = {"ridge": "#0072B2", "procrustes": "#E69F00", "cca": "#009E73"}
QUIET = "#767676"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "xtick.color": "#222222",
    "ytick.color": "#222222",
    "legend.frameon": False,
}


def draw(
    records: Sequence[Mapping[str, Any]], views: Mapping[str, NDArray[np.float64]], path: Path
) -> None:
    """Outside of pyplot: nothing opens a window."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        draw_digits(left, views)
        draw_recalls(right, records)
        figure.savefig(path, dpi=110, facecolor="white")


def draw_digits(axes: Axes, views: Mapping[str, NDArray[np.float64]]) -> None:
    """Unseen digits, and below each its pixels by ridge from every other view."""
    sources = [name for name in VIEWS if name != "pix"]
    unseen = np.arange(100, 2000, 200)[:SHOWN]  # the data have 200 of each digit, one after another
    seen = np.setdiff1d(np.arange(2000), unseen)
    pixels = views["pix"]
    rows = [pixels[unseen]]
    for name in sources:
        found = fit_map(views[name][seen], pixels[seen], ridge=1e-3)
        rows.append(found.apply(views[name][unseen]))
    height, width = (size + GAP for size in PIXELS)
    sheet = np.zeros((height * len(rows) - GAP, width * SHOWN - GAP))
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            place = sheet[row * height :, column * width :][: PIXELS[0], : PIXELS[1]]
            place[:] = image.reshape(PIXELS)
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=LARGEST_PIXEL, interpolation="nearest")
    labels = ["the digit", *(f"from {name}\n{VIEWS[name][1]} numbers" for name in sources)]
    axes.set_yticks(height * np.arange(len(rows)) + PIXELS[0] / 2, labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Pixels of unseen digits, translated from other views by ridge")


def draw_recalls(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """R@1 by target view, each map with its best and its plain score."""
    targets = [name for name in VIEWS if any(record["target"] == name for record in records)]
    offsets = np.linspace(-0.25, 0.25, len(COLOURS))
    for offset, (kind, colour) in zip(offsets, COLOURS.items(), strict=True):
        for score, is_filled in (("plain", False), ("inverted softmax", True)):
            found = [shares(records, kind, score, target) for target in targets]
            place = np.arange(len(targets)) + offset
            axes.vlines(
                place, [min(each) for each in found], [max(each) for each in found],
                color=colour, linewidth=1,
            )  # fmt: skip
            axes.plot(
                place, [mean(each) for each in found], "o", markersize=6, color=colour,
                markerfacecolor=colour if is_filled else "white", label=f"{kind}, {score}",
            )  # fmt: skip
    axes.set_xticks(range(len(targets)), targets)
    axes.set_ylim(0, 100)
    axes.set_ylabel("R@1 (%), mean over the other views")
    axes.set_xlabel("view that is looked up among 500")
    axes.set_title("The same digit found first; lines: lowest and highest split")
    axes.grid(axis="y", color="#E4E4E4")
    axes.legend(fontsize=8, loc="upper right")


def shares(records: Sequence[Mapping[str, Any]], kind: str, score: str, target: str) -> list[float]:
    """R@1 in per cent of each seed, the mean over the views that are translated."""
    by_seed: dict[int, list[float]] = {}
    for record in records:
        if record["map"] == kind and record["target"] == target:
            by_seed.setdefault(record["seed"], []).append(100 * record["r_at_1"][score])
    return [mean(each) for each in by_seed.values()]
