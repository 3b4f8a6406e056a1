"""The README's five rows: on the machine that was measured last, and how others compare."""

from collections.abc import Sequence

from notes import MIXED_RUNS, interval
from results import FORWARD_AND_BACKWARD, OURS, Row
from tables import HEADINGS, Column, advantage_text, markdown_table, time_text

# Operation, dtype, N. Two of them are slower than the best rival on the machine that is shown.
CASES = (
    ("clip", "float32", 8192),
    ("clip", "bfloat16", 8192),
    ("siglip", "float32", 8192),
    ("siglip", "float32", 512),
    ("project", "float32", 8192),
)
FUNCTIONS = {"clip": "clip_loss", "siglip": "siglip_loss", "project": "project"}
SUMMARY_OPS = tuple(dict.fromkeys(op for op, _, _ in CASES))
WIDTH = 512
TIME = "time_ms_p50"


def of_case(rows: Sequence[Row], op: str, dtype: str, size: int) -> list[Row]:
    """The whole step of one case on every machine, the last measured first."""
    found = [
        row
        for row in rows
        if (row.op, row.dtype, row.mode) == (op, dtype, FORWARD_AND_BACKWARD)
        and (row.shape["rows"], row.shape["width"]) == (size, WIDTH)
        and row.is_usual()
        and row.advantage(TIME) is not None
    ]
    return sorted(found, key=Row.date, reverse=True)


def elsewhere(rows: Sequence[Row]) -> str:
    """The least and the greatest advantage on the other machines."""
    advantages = sorted(row.advantage(TIME) or 0.0 for row in rows)
    if not advantages:
        return "–"
    return interval(f"{advantages[0]:.2f}×", f"{advantages[-1]:.2f}×")


def summary_block(rows: Sequence[Row]) -> str:
    """A row for each case; both times are of one machine."""
    cases = [found for case in CASES if (found := of_case(rows, *case))]
    columns: list[Column[list[Row]]] = [
        ("forward and backward, ms", lambda found: case_text(found[0])),
        ("mmcore", lambda found: time_text(found[0].figure(OURS, TIME) or 0.0)),
        ("best rival", lambda found: best_rival_text(found[0])),
        ("rival ÷ mmcore", lambda found: advantage_text(found[0], TIME)),
        ("other processors", lambda found: elsewhere(found[1:])),
    ]
    machines = dict.fromkeys(machine(found[0]) for found in cases)
    note = f"Medians on {'; '.join(machines)}."
    if any(found[0].has_mixed_runs() for found in cases):
        note += f" {MIXED_RUNS} Not all providers of this row were measured in the same run."
    return f"{markdown_table(columns, cases)}\n\n<sub>{note}</sub>"


def case_text(row: Row) -> str:
    """The function by its public name, sizes and dtype."""
    return f"`{FUNCTIONS[row.op]}`, {row.sizes_and_dtype()}"


def best_rival_text(row: Row) -> str:
    """The fastest rival's time, and which it is."""
    rival = row.best_rival(TIME)
    assert rival is not None
    return f"{time_text(row.figure(rival, TIME) or 0.0)}, {HEADINGS[rival]}"


def machine(row: Row) -> str:
    """The processor and the threads behind a row."""
    line = next(iter(row.lines.values()))
    return f"{line['processor']}, {line['threads']} threads"
