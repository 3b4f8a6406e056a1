"""Trains with both objectives, three seeds each, on one budget, and compares recall at 1.

python examples/glyphs/compare.py     six runs as train.py makes them; seeds 0, 1 and 2

Each run is a line of results.jsonl as soon as it ends; runs that have one are not repeated, so an
interrupted comparison is continued by the same command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import trange

from batches import ROWS_PER_CHARACTER, Batches
from data import Glyphs, load_glyphs
from evaluate import DIRECTIONS, embed_test_characters, retrieval
from train import CACHE, HERE, at_least, versions
from training import Settings, Training

RESULTS = HERE / "results.jsonl"
SEEDS = (0, 1, 2)


def git_commit() -> str:
    """HEAD, with -dirty when the tree differs from it; results themselves do not count."""
    git = ["git", "--no-optional-locks", "-C", str(HERE)]
    changes = ["status", "--porcelain", "--", ":/", f":(exclude){RESULTS.name}"]
    try:
        head, status = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "HEAD"], changes)
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("-dirty" if status.strip() else "")


def measure(settings: Settings, glyphs: Glyphs) -> dict[str, Any]:
    """Trains once; what results.jsonl says of it."""
    batches = Batches(glyphs, settings.batch_size, settings.seed, settings.objective)
    training = Training(settings, batches)
    for _ in trange(settings.steps, desc=f"{settings.objective}, seed {settings.seed}"):
        training.take_step()
    metrics = retrieval(embed_test_characters(training.model, batches))
    return {
        "objective": settings.objective,
        "seed": settings.seed,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "recall_at_1": {direction: row["recall_at_1"] for direction, row in metrics.items()},
        "seconds": round(training.seconds, 1),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The runs in a results file, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def of_budget(
    records: Iterable[dict[str, Any]], steps: int, batch_size: int
) -> list[dict[str, Any]]:
    """The runs of so many steps of so many rows."""
    budget = {"steps": steps, "batch_size": batch_size}
    return [record for record in records if record.items() >= budget.items()]


def table(records: Sequence[dict[str, Any]]) -> str:
    """Recall at 1 in Markdown: for each objective the mean, and every seed in its order."""
    columns = [f"`{name}` | seeds {', '.join(map(str, SEEDS))}" for name in ROWS_PER_CHARACTER]
    lines = [f"| R@1 | {' | '.join(columns)} |", "|:--|" + "--:|" * 2 * len(columns)]
    for query, candidate in DIRECTIONS:
        cells = [f"{query} to {candidate}"]
        for objective in ROWS_PER_CHARACTER:
            runs = sorted(
                (record["seed"], record["recall_at_1"][f"{query} to {candidate}"])
                for record in records
                if record["objective"] == objective
            )
            recalls = [recall for _, recall in runs]
            cells += [f"**{mean(recalls):.1%}**", ", ".join(f"{100 * r:.1f}" for r in recalls)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Compares the objectives of the example.")
    default = Settings()
    add = parser.add_argument
    add("--steps", type=at_least(1), default=default.steps, help=f"default {default.steps}")
    size = default.batch_size
    add("--batch-size", type=at_least(2), default=size, help=f"rows, default {size}")
    add("--out", type=Path, default=RESULTS, help="the results file")
    arguments = parser.parse_args()
    steps, batch_size, path = arguments.steps, arguments.batch_size, arguments.out
    commit, glyphs = git_commit(), load_glyphs(CACHE)
    for seed in SEEDS:
        for objective in ROWS_PER_CHARACTER:
            done = of_budget(read_results(path), steps, batch_size)
            if (objective, seed) in {(record["objective"], record["seed"]) for record in done}:
                continue
            record = measure(Settings(steps, batch_size, objective, seed), glyphs)
            with path.open("a") as file:
                file.write(json.dumps({**record, "commit": commit}) + "\n")
    print(f"\n{steps} steps of {batch_size} rows:\n")
    print(table(of_budget(read_results(path), steps, batch_size)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command continues") from None
