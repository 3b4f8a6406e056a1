"""`python -m mmcore tune` measures which tiles are the fastest on this GPU, and files them.

No call searches for tiles by itself, because compiling and timing dozens of them takes minutes.
Every later process reads what a search has found (tuned_tiles.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional
from mmcore.backends import workspace
from mmcore.backends.triton import launch, tuned_tiles
from mmcore.backends.triton.tuned_tiles import ProductTile

KINDS = ("sums", "gradient", "sigmoid", "heavy sums", "heavy gradient", "heavy sigmoid")
COPIES_TILES_SINCE = 9  # compute capability, major
Timer = Callable[[Callable[[], object]], float]


def candidates(has_copy_engine: bool) -> Iterator[ProductTile]:
    """Tiles worth a trial, whose sides divide the blocks of what is kept (kept_size.py)."""
    sides = ((128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
    copies = (True, False) if has_copy_engine else (False,)
    for (rows, columns), depth, warps, stages, copied in itertools.product(
        sides, (32, 64), (4, 8), (2, 3, 4), copies
    ):
        yield ProductTile(rows, columns, depth, warps, stages, copied)


def tune(
    rows: int, columns: int, dtype: torch.dtype, tiles: Iterable[ProductTile], time_ms: Timer,
    report: Callable[[str], None] = print,
) -> dict[str, ProductTile]:  # fmt: skip
    """The fastest of `tiles` for every kind of epilogue; kinds for which none runs are left out.

    Args:
        rows, columns: N and D of the features that are compared.
        dtype: bfloat16 or float16.
        tiles: what is tried, beside the tile in use.
        time_ms: milliseconds of a call.
        report: is told what was found, a line for each kind.
    """
    x, y = (F.normalize(torch.randn(rows, columns), dim=1).to(dtype) for _ in range(2))
    tiles = list(tiles)
    found: dict[str, ProductTile] = {}
    for kind in KINDS:
        call = call_of(kind, x, y)
        in_use = launch.product_tile(x, dtype, kind)
        times = {
            tile: time_of(kind, tile, call, time_ms) for tile in dict.fromkeys([in_use, *tiles])
        }
        best = min(times, key=lambda tile: times[tile])
        if times[best] == float("inf"):
            report(f"{kind}: no tile runs")
            continue
        found[tuned_tiles.key_of(kind, columns, dtype)] = best
        before, now = (f"{times[tile]:.3f} ms with {tuple(tile)}" for tile in (in_use, best))
        report(f"{kind}: {before}, {now}")
    return found


def time_of(kind: str, tile: ProductTile, call: Callable[[], object], time_ms: Timer) -> float:
    """Milliseconds with a tile; infinity if this GPU cannot run it."""
    with forced(kind, tile):
        try:
            call()
            return time_ms(call)
        # The error for too few registers or too little shared memory differs by target and version.
        except Exception:
            return float("inf")


@contextmanager
def forced(kind: str, tile: ProductTile) -> Iterator[None]:
    """Within the block launches of that kind take this tile."""
    launch.FORCED_TILES[kind] = tile
    try:
        yield
    finally:
        del launch.FORCED_TILES[kind]


def call_of(kind: str, x: Tensor, y: Tensor) -> Callable[[], object]:
    """A call whose time goes to a kernel of this kind: CLIP or SigLIP, with labels if heavy."""
    scale = torch.tensor(20.0, device=x.device)
    label = torch.arange(len(x), device=x.device) // 4
    # As in training: with gradients wanted, E is kept, which takes shared memory as well.
    leaf = x.detach().requires_grad_()

    def statistics() -> Tensor:
        if not kind.startswith("heavy"):
            return functional.softmax_similarity(leaf, y, scale, backend="triton").row_lse.sum()
        views = functional.softmax_similarity(
            leaf, leaf, scale, row_label=label, columns=False, backend="triton"
        )
        classes = functional.softmax_similarity(
            leaf, y, scale, row_label=label, col_label=label, backend="triton"
        )
        return views.row_lse.sum() + classes.row_lse.sum()

    def sigmoid() -> object:
        if not kind.startswith("heavy"):
            return functional.sigmoid_similarity(x, y, scale, backend="triton")
        classes = functional.sigmoid_similarity(
            x, y, scale, row_label=label, col_label=label, backend="triton"
        )
        return functional.sigmoid_similarity(x, x, scale, backend="triton"), classes

    if kind.endswith("sums"):
        return statistics
    if kind.endswith("sigmoid"):
        return sigmoid
    with workspace.workspace(0):  # so that the backward computes every product again
        total = statistics()
    return lambda: torch.autograd.grad(total, leaf, retain_graph=True)
