"""Rows of results → Markdown tables."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from notes import (
    MIXED_RUNS,
    RIVALS_ARE,
    WORK_IS,
    accuracy_verdict,
    machine_heading,
    provenance_note,
    rounds_note,
    verdict,
)
from results import FORWARD_AND_BACKWARD, OURS, OURS_FULL, OURS_LEAN, RIVALS, Row

Item = TypeVar("Item")
Column = tuple[str, Callable[[Item], str]]

MODE_TITLES = {FORWARD_AND_BACKWARD: "Forward and backward", "forward": "Forward only"}
HEADINGS = {
    OURS: "mmcore",
    OURS_LEAN: "mmcore, workspace 0",
    OURS_FULL: "mmcore, `y` a copy",
    "torch-eager": "eager",
    "torch-eager-blocks": "eager, two blocks",
    "torch-compile": "torch.compile",
    "torch-linear-cross-entropy": "linear_cross_entropy",
    "lightly": "lightly",
    "pytorch-metric-learning": "pytorch-metric-learning",
    "open_clip": "open_clip",
    "sentence-transformers": "sentence-transformers",
}
# Whose arithmetic is what the case counts; the others' share of peak would say something else.
DOES_COUNTED_WORK = {"clip": OURS_LEAN, "siglip": OURS, "project": OURS}
SHARE_HEADINGS = {OURS: "mmcore's share of peak", OURS_LEAN: "share of peak, workspace 0"}
NOTHING = "–"


def time_block(rows: Sequence[Row]) -> str:
    """Times of every provider, mmcore against the best rival, share of the FMA peak."""
    parts = []
    for mode, group in itertools.groupby(rows, key=lambda row: row.mode):
        of_mode = list(group)
        columns = [
            ("case", Row.sizes_and_dtype),
            *provider_columns(of_mode, "time_ms_p50", time_text),
            ("best rival ÷ mmcore", lambda row: advantage_text(row, "time_ms_p50")),
            *roof_columns(of_mode),
        ]
        parts.append(f"{MODE_TITLES[mode]}, median time in ms:")
        parts.append(markdown_table(columns, of_mode))
        parts.append(verdict(of_mode, "time_ms_p50", "is faster than", "is slower than"))
    op = rows[0].op
    parts.insert(0, machine_heading(rows))
    notes = [RIVALS_ARE[op], *([WORK_IS[op]] if op in WORK_IS else [])]
    return join(parts, *notes, rounds_note(rows), provenance_note(rows))


def memory_block(rows: Sequence[Row]) -> str:
    """Peak memory of every provider above inputs, output and gradients."""
    parts = ["Peak MiB over forward and backward, above inputs, output and gradients:"]
    for _, group in itertools.groupby(rows, key=lambda row: row.op):
        parts.append(memory_table(list(group)))
    parts.append(verdict(rows, "peak_mib", "needs no more than", "needs more than"))
    if any(OURS_LEAN in row.lines for row in rows):
        lean = (OURS_LEAN, "With workspace 0 mmcore")
        parts.append(verdict(rows, "peak_mib", "needs no more than", "needs more than", *lean))
    processes = "A fresh process for every figure; linear_cross_entropy picks its chunks itself."
    return join(parts, processes, provenance_note(rows))


def memory_table(rows: Sequence[Row]) -> str:
    """The memory of one operation."""
    columns = [
        ("case", Row.label),
        *provider_columns(rows, "peak_mib", mebibyte_text),
        ("best rival ÷ mmcore", lambda row: advantage_text(row, "peak_mib")),
    ]
    if any(OURS_LEAN in row.lines for row in rows):
        ratio = "best rival ÷ workspace 0"
        columns.append((ratio, lambda row: advantage_text(row, "peak_mib", OURS_LEAN)))
    if any(row.dtype == "bfloat16" for row in rows):
        columns.append(("of mmcore's, float32 sums of gradients", accumulator_text))
    columns.append(("inputs, output and gradients", interface_text))
    return markdown_table(columns, rows)


def accuracy_block(rows: Sequence[Row]) -> str:
    """mmcore's errors against float64, and eager's beside them."""
    parts = ["Largest absolute error over the largest absolute value, mmcore / eager:"]
    for _, group in itertools.groupby(rows, key=lambda row: row.op):
        of_op = list(group)
        quantities = error_quantities(of_op)
        columns = [("case", Row.label), *((quantity_text(it), errors(it)) for it in quantities)]
        parts.append(markdown_table(columns, of_op))
    yardstick = "Against eager torch in float64, the worst of three seeds; the smaller one is bold."
    return join(
        [*parts, accuracy_verdict(rows, error_quantities(rows))], yardstick, provenance_note(rows)
    )


def join(parts: Sequence[str], *notes: str) -> str:
    """Paragraphs, the notes in one small last one."""
    return "\n\n".join([*parts, f"<sub>{' '.join(notes)}</sub>"])


# ---- columns


def measured_providers(rows: Iterable[Row]) -> list[str]:
    """mmcore's own ways first, then the rivals that any row has."""
    found = {name for row in rows for name in row.lines}
    return [name for name in (OURS, OURS_LEAN, OURS_FULL, *RIVALS) if name in found]


def provider_columns(
    rows: Sequence[Row], figure: str, render: Callable[[float], str]
) -> list[Column[Row]]:
    """A column of one figure for every provider; the smallest of a row is bold."""

    def column(provider: str) -> Callable[[Row], str]:
        return lambda row: figure_text(row, provider, figure, render)

    return [(HEADINGS[name], column(name)) for name in measured_providers(rows)]


def figure_text(row: Row, provider: str, figure: str, render: Callable[[float], str]) -> str:
    """One figure of one provider, or why there is none."""
    value = row.figure(provider, figure)
    if value is None:
        skipped = row.lines.get(provider, {}).get("skipped")
        return NOTHING if skipped is None else "does not fit" if "GiB" in skipped else "failed"
    measured = [row.figure(name, figure) for name in row.lines]
    is_smallest = value == min(other for other in measured if other is not None)
    return f"**{render(value)}**" if is_smallest else render(value)


def markdown_table(columns: Sequence[Column[Item]], items: Iterable[Item]) -> str:
    """A Markdown table whose first column is words and whose others are figures."""
    heads = [head for head, _ in columns]
    alignment = [":--", *["--:"] * (len(columns) - 1)]
    body = [[render(item) for _, render in columns] for item in items]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, alignment, *body))


# ---- cells


def time_text(time_ms: float) -> str:
    """At least three significant digits from 1 ms on."""
    digits = 0 if time_ms >= 100 else 1 if time_ms >= 10 else 2
    return f"{time_ms:,.{digits}f}"


def mebibyte_text(mebibytes: float) -> str:
    """Whole MiB, with one digit more where they are few."""
    return f"{mebibytes:,.0f}" if mebibytes >= 100 else f"{mebibytes:.1f}"


def interface_text(row: Row) -> str:
    """MiB that every provider holds alike."""
    sizes = [row.figure(name, "interface_mib") for name in row.lines]
    measured = [size for size in sizes if size is not None]
    return mebibyte_text(measured[0]) if measured else NOTHING


def accumulator_text(row: Row) -> str:
    """MiB of the float32 sums that 16-bit gradients are rounded from."""
    size = row.figure(OURS, "accumulator_mib")
    return NOTHING if size is None else mebibyte_text(size)


def advantage_text(row: Row, figure: str, provider: str = OURS) -> str:
    """The best rival's figure over mmcore's: above 1, mmcore is better."""
    advantage = row.advantage(figure, provider)
    mark = MIXED_RUNS if row.has_mixed_runs() else ""
    return NOTHING if advantage is None else f"{advantage:.2f}×{mark}"


def roof_columns(rows: Sequence[Row]) -> list[Column[Row]]:
    """mmcore against the machine: its share of the peak, or its GB/s where bytes are all."""
    if all(row.figure(OURS, "share_of_peak") is None for row in rows):
        return [("mmcore's GB/s", lambda row: roof_text(row, OURS, "bandwidth_gb_s", ".1f"))]
    provider = DOES_COUNTED_WORK.get(rows[0].op)
    if provider not in measured_providers(rows):
        return []
    share: Column[Row] = (
        SHARE_HEADINGS[provider],
        lambda row: roof_text(row, provider, "share_of_peak", ".0%"),
    )
    return [share]


def roof_text(row: Row, provider: str, figure: str, form: str) -> str:
    """One of mmcore's rates, measured in the same minutes as the roof it stands under."""
    rate = row.figure(provider, figure)
    return NOTHING if rate is None else format(rate, form)


def error_quantities(rows: Iterable[Row]) -> list[str]:
    """The errors that the rows' lines have, value first."""
    lines = [line for row in rows for line in row.lines.values()]
    return list(dict.fromkeys(name for line in lines for name in line if name.startswith("error_")))


def quantity_text(quantity: str) -> str:
    """error_grad_x → gradient of `x`."""
    name = quantity.removeprefix("error_")
    return "value" if name == "value" else f"gradient of `{name.removeprefix('grad_')}`"


def errors(quantity: str) -> Callable[[Row], str]:
    """mmcore's and eager's error of one quantity, the smaller one bold."""

    def text(row: Row) -> str:
        pair = [row.figure(OURS, quantity), row.figure(OURS, f"eager_{quantity}")]
        shown = [NOTHING if error is None else f"{error:.1e}" for error in pair]
        ratio = row.error_ratio(quantity)
        if ratio is not None:
            smaller = 0 if ratio <= 1 else 1
            shown[smaller] = f"**{shown[smaller]}**"
        return " / ".join(shown)

    return text
