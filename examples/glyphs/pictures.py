"""The three pictures of a run, drawn without a display."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from batches import PAIRS, Batches, Modalities
from data import TEST_CHARACTERS
from evaluate import DIRECTIONS, ranks
from run_folder import RunFolder
from step_time import PHASES

# Okabe and Ito's colours, told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, VERMILLION, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
)
INK, QUIET = "#222222", "#767676"
PAIR_COLOURS = dict(zip(PAIRS, (BLUE, VERMILLION, GREEN), strict=True))
MMCORE_PHASES = ("heads and losses forward", "heads and losses backward")
PHASE_COLOURS = dict(
    zip(PHASES, ("#7F7F7F", "#D9D9D9", ORANGE, SKY, "#E9E9E9", "#A6A6A6"), strict=True)
)
BACKEND_NAMES = {"reference": "reference\n(plain PyTorch)", "cpu": "compiled\nkernels"}
SMOOTHING = 0.02  # of all steps
EXAMPLES = 8  # of successes, and of failures
SHOWN = 5  # images for each name
ROW = 1.28  # the height of a row of the sheet, where an image is 1
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
}


def save(figure: Figure, folder: RunFolder, name: str) -> None:
    """A figure of its own, outside pyplot: nothing opens a window."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, facecolor="white")
    folder.write(folder.path / name, buffer.getvalue())


def draw_learning_curves(records: Sequence[dict[str, Any]], folder: RunFolder) -> None:
    """learning_curves.png: the losses, and recall among the test characters on the way."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_losses(left, records)
        draw_recalls(right, [record for record in records if "recall_at_1" in record])
        for axes in (left, right):
            axes.set_xlabel("step")
            axes.set_xlim(0, records[-1]["step"])
            axes.set_ylim(bottom=0)
            axes.grid(axis="y")
        save(figure, folder, "learning_curves.png")


def draw_losses(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    """Each pair's loss, thin, and its running mean."""
    steps = np.array([record["step"] for record in records])
    margin = round(SMOOTHING * len(steps) / 2)
    window = np.ones(2 * margin + 1) / (2 * margin + 1)
    for (x, y), colour in PAIR_COLOURS.items():
        loss = np.array([record["loss"][f"{x}-{y}"] for record in records])
        axes.plot(steps, loss, color=colour, alpha=0.25, linewidth=0.8)
        mean = np.convolve(np.pad(loss, margin, mode="edge"), window, "valid")
        axes.plot(steps, mean, color=colour, linewidth=2, label=f"{x} and {y}")
    axes.set_title("Contrastive loss in training")
    axes.legend()


def draw_recalls(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    """Recall at 1 in every direction; the two of a pair share its colour."""
    steps = [record["step"] for record in records]
    for query, candidate in DIRECTIONS:
        is_forward = (query, candidate) in PAIR_COLOURS
        colour = PAIR_COLOURS[(query, candidate) if is_forward else (candidate, query)]
        percent = [100 * record["recall_at_1"][f"{query} to {candidate}"] for record in records]
        style = {"linestyle": "-" if is_forward else (0, (4, 2)), "marker": "o", "markersize": 3.5}
        label = f"{query} to {candidate}, {percent[-1]:.1f}%"
        axes.plot(steps, percent, color=colour, label=label, **style)
    axes.set_ylim(top=100)
    axes.set_title(f"Right answer first, among {TEST_CHARACTERS} characters never seen (%)")
    axes.legend(loc="best", fontsize=9, handlelength=3.5)


def draw_retrieval_sheet(
    embeddings: Modalities, batches: Batches, seed: int, folder: RunFolder
) -> None:
    """retrieval.png: names and the images nearest to them, half successes and half failures."""
    similarity = embeddings.name @ embeddings.image.T
    nearest = similarity.sort(descending=True, stable=True).indices[:, :SHOWN].numpy()
    rank = ranks(embeddings.name, embeddings.image).numpy()
    random = np.random.default_rng(seed)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(15, 8))
        figure.text(0.015, 0.945, "Which glyph has this name?", fontsize=20, weight="bold")
        figure.text(0.015, 0.905, explain(len(rank)), fontsize=11, color=QUIET)
        for left, is_right in ((0.015, True), (0.515, False)):
            axes = figure.add_axes((left, 0.01, 0.475, 0.83))
            queries = np.flatnonzero((rank == 1) == is_right)
            drawn = random.permutation(queries)[:EXAMPLES]
            outcome = "The right glyph came first" if is_right else "Another glyph came first"
            axes.set_title(f"{outcome}: {len(queries)} names, {len(drawn)} of them drawn at random")
            for row, query in enumerate(drawn):
                draw_query(axes, -ROW * row, query, nearest[query], rank[query], batches)
            axes.set_xlim(0, 11.4)
            axes.set_ylim(-ROW * EXAMPLES, 0.2)
            axes.axis("off")
        save(figure, folder, "retrieval.png")


def explain(characters: int) -> str:
    """How to read the sheet."""
    return (
        f"The {SHOWN} nearest of {characters} glyphs of characters never seen in training, nearest "
        "first. Blue with a check mark: the right one. Grey with a cross: another."
    )


def draw_query(
    axes: Axes, top: float, query: int, nearest: NDArray[np.int64], rank: int, batches: Batches
) -> None:
    """One name, the images nearest to it in order, and the right one if it is not the first."""
    images = batches.glyphs.images[batches.test_glyphs()]
    name = textwrap.fill(batches.test_names[query], 25)
    axes.text(3.5, top - 0.5, name, ha="right", va="center", fontsize=9.5, linespacing=1.3)
    for place, candidate in enumerate(nearest):
        draw_tile(axes, 3.75 + 1.2 * place, top, images[candidate], candidate == query)
    if rank > 1:
        draw_tile(axes, 10.25, top, images[query], is_right=True)
        axes.annotate(
            f"rank {rank}", (10.2, top - 0.5), ha="right", va="center", rotation=90, color=QUIET
        )


def draw_tile(
    axes: Axes, left: float, top: float, image: NDArray[np.uint8], is_right: bool
) -> None:
    """An image as the encoder sees it, marked by the frame and by the sign in its corner."""
    area = (left, left + 1, top - 1, top)
    axes.imshow(image, cmap="gray_r", extent=area, interpolation="bicubic")
    frame = {"edgecolor": BLUE, "linewidth": 2.6} if is_right else {"edgecolor": "#B8B8B8"}
    axes.add_patch(Rectangle((left, top - 1), 1, 1, fill=False, **frame))
    colour, sign = (BLUE, "\N{CHECK MARK}") if is_right else (VERMILLION, "\N{MULTIPLICATION X}")
    axes.plot(left + 1, top, marker="o", markersize=11, color=colour, clip_on=False)
    axes.text(left + 1, top - 0.01, sign, color="white", ha="center", va="center", fontsize=7.5)


def draw_step_time(records: Sequence[dict[str, Any]], folder: RunFolder) -> None:
    """step_time.png: one bar for each backend and batch size, in the phases of a step."""
    sizes = sorted({record["batch_size"] for record in records})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 1.5 + 1.8 * len(sizes)), layout="constrained")
        panels = figure.subplots(len(sizes), 1, squeeze=False)[:, 0]
        for axes, size in zip(panels, sizes, strict=True):
            bars = [record for record in records if record["batch_size"] == size]
            draw_phases(axes, bars)
            axes.set_title(f"Batch of {size}")
        panels[-1].set_xlabel("milliseconds of a training step (median)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.suptitle("Where the time of a training step goes", x=0.01, ha="left", weight="bold")
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9.5)
        save(figure, folder, "step_time.png")


def draw_phases(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    """Stacked bars; what mmcore does is in colour."""
    names = [BACKEND_NAMES[record["backend"]] for record in records]
    left = np.zeros(len(records))
    longest = max(sum(record["milliseconds"].values()) for record in records)
    for phase, colour in PHASE_COLOURS.items():
        widths = np.array([record["milliseconds"][phase] for record in records])
        label = f"{phase} (mmcore)" if phase in MMCORE_PHASES else phase
        style = {"height": 0.62, "color": colour, "edgecolor": "white", "label": label}
        bars = axes.barh(names, widths, left=left, **style)
        texts = [f"{width:.0f}" if width > 0.03 * longest else "" for width in widths]
        axes.bar_label(bars, texts, label_type="center", fontsize=9)
        left += widths
    for row, record in enumerate(records):
        own = sum(record["milliseconds"][phase] for phase in MMCORE_PHASES)
        total = f"{left[row]:.0f} ms in all\n{own:.0f} ms in heads and losses"
        axes.text(left[row] + 0.01 * longest, row, total, va="center")
    axes.set_xlim(0, 1.25 * longest)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.invert_yaxis()
