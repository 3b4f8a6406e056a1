"""The sentences under a table: who wins, where mmcore loses, and where the figures come from."""

from collections.abc import Sequence

from results import OURS, Line, Row

RIVALS_ARE = {
    "clip": (
        "Rivals: open_clip's ClipLoss, eager and under torch.compile, and F.linear_cross_entropy "
        "in both directions with the fastest chunks found for each case."
    ),
    "siglip": "Rivals: open_clip's SigLipLoss, eager and under torch.compile.",
    "nt_xent": (
        "Rivals: F.cross_entropy over the masked matrix, eager and under torch.compile; lightly's "
        "NTXentLoss, eager or under torch.compile, whichever is faster; pytorch-metric-learning's "
        "NTXentLoss under torch.compile, which holds N³ numbers."
    ),
    "sup_con": (
        "Four rows of each class. Rivals: log-sum-exp and positives of the masked matrix, eager "
        "and under torch.compile; pytorch-metric-learning's SupConLoss, eager or under "
        "torch.compile, whichever is faster."
    ),
    "project": (
        "Rivals: F.normalize(F.linear(F.layer_norm(x))) with every weight and bias, "
        "eager and under torch.compile."
    ),
    "l2_normalize": "Rivals: F.normalize, eager and under torch.compile.",
}
SYMMETRIC = (
    "`y` a copy: the same rows given as another tensor, so that mmcore does not know that the "
    "matrix is its own transpose."
)
# What mmcore computes, beside the work that is counted for everybody.
WORK_IS = {
    "clip": (
        "The share of peak counts 8·N²·D, which is what workspace 0 computes; with the default "
        "workspace mmcore keeps tiles for the backward and computes less."
    ),
    "siglip": (
        "The share of peak counts 6·N²·D, which is what the default workspace computes, where it "
        "holds both gradients; workspace 0 computes the matrix once more."
    ),
    "nt_xent": SYMMETRIC,
    "sup_con": SYMMETRIC,
}
MIXED_RUNS = "†"
# Threads that wait for each other at barriers suffer from one stolen core many times over.
MOST_OTHERS_CORES = 0.2


def verdict(
    rows: Sequence[Row],
    figure: str,
    better: str,
    worse: str,
    provider: str = OURS,
    name: str = "mmcore",
) -> str:
    """Where mmcore stands; every row in which it loses is named."""
    every = [(row.advantage(figure, provider), row) for row in rows]
    compared = [(advantage, row) for advantage, row in every if advantage is not None]
    if not compared:
        return f"{name} has not been measured here."
    behind = [f"{row.label()} ({advantage:.2f}×)" for advantage, row in compared if advantage < 1]
    if behind:
        count = f"{len(behind)} of {len(compared)}"
        return f"**{name} {worse} the best rival in {count} cases**: {'; '.join(behind)}."
    advantages = [advantage for advantage, _ in compared]
    by = interval(f"{min(advantages):.2f}×", f"{max(advantages):.2f}×")
    return f"{name} {better} the best rival in every case, by {by}."


def accuracy_verdict(rows: Sequence[Row], quantities: Sequence[str]) -> str:
    """In how many quantities mmcore's error exceeds eager's, and by how much at most."""
    every = [row.error_ratio(quantity) for row in rows for quantity in quantities]
    ratios = [ratio for ratio in every if ratio is not None]
    above = [ratio for ratio in ratios if ratio > 1]
    if not ratios:
        return "mmcore has not been measured here."
    if not above:
        return f"mmcore's error is never above eager's, in {len(ratios)} quantities."
    count = f"{len(above)} of {len(ratios)}"
    return f"**mmcore's error is above eager's in {count} quantities**, at most {max(above):.2f}×."


def rounds_note(rows: Sequence[Row]) -> str:
    """How many interleaved rounds stand behind the medians, and how far they spread."""
    lines = [line for row in rows for line in row.lines.values() if "time_ms_p50" in line]
    if not lines:
        return "Nothing could be timed."
    rounds = sorted({line["rounds"] for line in lines})
    spreads = [(line["time_ms_p80"] - line["time_ms_p20"]) / line["time_ms_p50"] for line in lines]
    counted = interval(str(rounds[0]), str(rounds[-1]))
    note = (
        f"Medians of {counted} interleaved rounds, fresh inputs and cold caches every time; "
        f"p20 to p80 spans at most {max(spreads):.0%} of the median."
    )
    if any(row.has_mixed_runs() for row in rows):
        note += f" {MIXED_RUNS} The providers of this row were measured in different runs."
    others = max(float(line["others_cores"]) for line in lines)
    if others > MOST_OTHERS_CORES:
        note += f" **Others used up to {others:.1f} cores meanwhile: not to be trusted.**"
    return note


def provenance_note(rows: Sequence[Row]) -> str:
    """Machine, versions, commit and dates behind a table."""
    lines = [line for row in rows for line in row.lines.values()]
    newest = max(lines, key=lambda line: str(line["date"]))
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    commits = ", ".join(sorted({short_commit(line["commit"]) for line in lines}))
    days = sorted({str(line["date"])[:10] for line in lines})
    return (
        f"{newest['processor']}, {newest['cores']} cores, {newest['instruction_set'].upper()}, "
        f"{newest['threads']} threads{peak_note(lines)}; {versions}; "
        f"commit {commits}; {interval(days[0], days[-1])}."
    )


def machine_heading(rows: Sequence[Row]) -> str:
    """Whose figures follow: the processor and the cores that were used of it."""
    line = next(iter(rows[0].lines.values()))
    return f"**{line['processor']}, {line['cores']} cores, {line['instruction_set'].upper()}**"


def peak_note(lines: Sequence[Line]) -> str:
    """The machine's peak of every dtype that stands under one."""
    peaks: dict[str, list[float]] = {}
    for line in lines:
        if peak := line.get("fma_peak_gflop_s"):
            peaks.setdefault(line["dtype"], []).append(peak)
    found = (
        f", {dtype} peak {interval(f'{min(of_dtype):.0f}', f'{max(of_dtype):.0f}')} GFLOP/s"
        for dtype, of_dtype in sorted(peaks.items(), reverse=True)
    )
    return "".join(found)


def interval(first: str, last: str) -> str:
    """`7 to 50`, or one of them where they are the same."""
    return first if first == last else f"{first} to {last}"


def short_commit(commit: str) -> str:
    """Ten digits of the hash, and whether the tree differed from it."""
    revision, _, suffix = commit.partition("-")
    return revision[:10] + (f"-{suffix}" if suffix else "")
