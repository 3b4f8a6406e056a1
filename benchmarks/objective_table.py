"""The table of all objectives, each beside its best rival."""

from collections.abc import Sequence

from notes import machine_heading, provenance_note, rounds_note, verdict
from results import OURS, Row
from tables import HEADINGS, advantage_text, join, markdown_table, time_text

# Of one objective: what it is beside mmcore's own calls, and how that reads.
OWN_CALLS = {
    "mmcore-longest": "Five Matryoshka prefixes cost {:.2f}× the longest alone.",
    "mmcore-pairs": "Three modalities in one call cost {:.2f}× their three pairs one by one.",
}
TIME = "time_ms_p50"


def objectives_block(rows: Sequence[Row]) -> str:
    """Times of mmcore and of the best rival, and what is shared between prefixes and pairs."""
    columns = [
        ("objective", lambda row: row.op),
        ("mmcore", lambda row: _time(row, OURS)),
        ("best rival", lambda row: _time(row, row.best_rival(TIME))),
        ("which", lambda row: HEADINGS.get(row.best_rival(TIME) or "", "–")),
        ("rival ÷ mmcore", lambda row: advantage_text(row, TIME)),
    ]
    sizes = "N = {rows:,} rows a side, D = {width:,}".format(**rows[0].shape)
    parts = [
        machine_heading(rows),
        f"Forward and backward, {sizes}, float32, median time in ms:",
        markdown_table(columns, rows),
        verdict(rows, TIME, "is faster than", "is slower than"),
        " ".join(text.format(ratio) for text, ratio in _own_ratios(rows)),
    ]
    eager = "Eager: plain PyTorch, or open_clip's ClipLoss once a prefix or pair."
    return join([part for part in parts if part], eager, rounds_note(rows), provenance_note(rows))


def _time(row: Row, provider: str | None) -> str:
    figure = None if provider is None else row.figure(provider, TIME)
    return "–" if figure is None else time_text(figure)


def _own_ratios(rows: Sequence[Row]) -> list[tuple[str, float]]:
    found = []
    for row in rows:
        ours = row.figure(OURS, TIME)
        for provider, text in OWN_CALLS.items():
            other = row.figure(provider, TIME)
            if ours is not None and other is not None:
                found.append((text, ours / other))
    return found
