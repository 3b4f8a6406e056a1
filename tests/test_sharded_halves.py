"""softmax_similarity over ranks where y is x: half of the blocks, each computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import on_ranks

from mmcore.functional import softmax_similarity
from mmcore.ops.sharded import halves

EXACT = {"rtol": 1e-12, "atol": 1e-12}
WIDTH = 8
MIRRORED = {
    "groups": {}, "negatives": {"denominator": "negatives"},
    "log-sum-exp": {"positives": "log_sum_exp"}, "targets": {},
    "targets, negatives": {"denominator": "negatives"},
}  # fmt: skip
SHARES = ([3, 4], [0, 5], [5, 1, 0, 3], [2, 3, 4, 5, 6], [4, 1, 3, 0, 2, 5, 1, 1])


@pytest.mark.parametrize("options", MIRRORED)
@pytest.mark.parametrize("counts", SHARES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_half_of_the_matrix_over_ranks(
    dtype: torch.dtype, counts: list[int], options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a block that two ranks that face each other both compute, or neither of them; and
    statistics of columns that are taken for those of another rank's rows.
    """
    rows = sum(counts)
    x, row_bias, upstream = (torch.randn(rows, *size).to(dtype) for size in ((WIDTH,), (), ()))
    name = "target" if "target" in options else "row_label"
    ids, group = torch.randint(-1, 4, (rows,)), torch.arange(rows)
    if name == "target":
        ids = torch.where(group.flip(0) == group, -1, group.flip(0))

    def run(rank: int | None, **others: Any) -> Any:
        given = [x, row_bias, upstream, ids, group]
        if rank is not None:
            given = [z.split(counts)[rank] for z in given]
        leaves = [
            z.clone().requires_grad_()
            for z in (*given[:2], torch.tensor(1.5).double(), torch.ones(()).double())
        ]
        own, bias, scale, shift = leaves
        found = softmax_similarity(
            own, own, scale, shift, row_group=given[4], row_bias=bias, col_bias=bias, columns=False,
            **{name: given[3]}, **MIRRORED[options], **others,
        )  # fmt: skip
        parts = (found.row_lse, found.row_pos)
        total = sum((z * given[2]).masked_fill(z == -torch.inf, 0).sum() for z in parts)
        return [z.detach() for z in parts], torch.autograd.grad(total, leaves)

    values, gradients = run(None)
    sizes = watched_blocks(monkeypatch)
    found = on_ranks(len(counts), lambda rank: run(rank, process_group="world"))
    half = sum(n * n for n in counts) + sum(n * m for i, n in enumerate(counts) for m in counts[:i])
    assert sum(sizes) == 2 * half  # forward and backward
    close = EXACT if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for i, value in enumerate(values):
        torch.testing.assert_close(torch.cat([parts[i] for parts, _ in found]), value, **close)
    for i, gradient in enumerate(gradients):
        parts = [of_rank[i] for _, of_rank in found]
        joined = torch.cat(parts) if gradient.ndim else torch.stack(parts).sum()
        torch.testing.assert_close(joined, gradient, **close)


def watched_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pairs of every block that is computed from now on."""
    sizes: list[int] = []
    block = halves.block_of

    def watched(*arguments: Any) -> Any:
        found = block(*arguments)
        sizes.append(len(found.x) * len(found.keys))
        return found

    monkeypatch.setattr(halves, "block_of", watched)
    return sizes


TARGETS = {
    "each other's": ([3, 2, 1, 0, -1], [0, 1, 2, 3, 4], True),
    "their own": ([0, 1, 2, 3, 4], None, True),
    "none": ([-1] * 5, None, True),
    "another's": ([1, 2, 0, -1, -1], [0, 1, 2, 3, 4], False),
    "each other's, a group": ([1, 0, -1, -1, -1], [0, 0, 2, 3, 4], False),
    "each other's, no groups": ([1, 0, -1, -1, -1], None, False),
    "their own, groups": ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], False),
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_which_targets_are_mutual(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches half of a matrix where labels do not name the same pairs as the targets."""
    target, group, is_half = TARGETS[name]
    counts, x = [2, 3], torch.randn(5, WIDTH, dtype=torch.float64)
    ids = {"target": torch.tensor(target)}
    if group is not None:
        ids["row_group"] = torch.tensor(group)
    whole = softmax_similarity(x, x, 3.0, columns=False, **ids)
    sizes = watched_blocks(monkeypatch)

    def run(rank: int) -> Any:
        own = x.split(counts)[rank]
        given = {kind: value.split(counts)[rank] for kind, value in ids.items()}
        return softmax_similarity(own, own, 3.0, columns=False, process_group="world", **given)

    found = on_ranks(2, run)
    for i in (0, 2):
        joined = torch.cat([of_rank[i] for of_rank in found])
        torch.testing.assert_close(joined, whole[i], **EXACT)
    assert bool(sizes) == is_half
