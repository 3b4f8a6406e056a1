"""``python -m mmcore retrieve``: searches one file of features by another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mmcore.ops.topk import METRICS
from mmcore.retrieval import files
from mmcore.retrieval.arrays import is_array
from mmcore.retrieval.merging import TopK
from mmcore.retrieval.progress import Interrupted
from mmcore.retrieval.search import topk

IS = "find the items of a gallery with the highest score for each query, exactly"
INTERRUPTED = 130  # as shells report it


def add_to(commands: Any) -> None:
    """The command and its arguments."""
    parser = commands.add_parser("retrieve", help=IS, description=IS)
    add = parser.add_argument
    add("queries", help="a .npy or .safetensors file of features, a row for each query")
    add("gallery", help="a .npy, .safetensors or .parquet file of features, a row for each item")
    add("-k", type=int, default=10, help="how many items for each query (default %(default)s)")
    add("--metric", choices=METRICS, default=METRICS[0], help="default %(default)s")
    add("--exclude-self", action="store_true", help="both files are the same: leave out row i of i")
    add("--output", help="an .npz file for `scores` and `indices`, instead of lines of text")


def run(arguments: argparse.Namespace) -> None:
    """Searches, and writes or prints what was found; errors are one line."""
    try:
        _check_output(arguments.output)
        queries = files.opened(arguments.queries)
        if not is_array(queries):
            raise ValueError(
                f"queries must be a .npy or .safetensors file, got {arguments.queries}"
            )
        found = topk(
            queries, arguments.gallery, arguments.k, metric=arguments.metric,
            exclude_self=arguments.exclude_self,
        )  # fmt: skip
    except Interrupted as stopped:
        _write(stopped.found, arguments.output)
        print(f"only the first {stopped.rows} rows of the gallery were searched", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (OSError, TypeError, ValueError, ImportError) as error:
        sys.exit(f"retrieve: {error}")
    _write(found, arguments.output)


def _check_output(path: str | None) -> None:
    """Before a long search, not after it."""
    if path is not None and not path.endswith(".npz"):
        raise ValueError(f"--output must end in .npz, got {path}")
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"--output must be in a folder that exists, got {path}")


def _write(found: TopK, path: str | None) -> None:
    scores, indices = (np.asarray(value) for value in found)
    if path is not None:
        np.savez(path, scores=scores, indices=indices)
        return
    print("query\trank\titem\tscore")
    for query, row in enumerate(indices):
        for rank, item in enumerate(row):
            if item >= 0:
                print(f"{query}\t{rank + 1}\t{item}\t{scores[query, rank]:.7g}")
