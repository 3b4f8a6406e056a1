"""The primitives over rows that several ranks hold: pairs, biases, dtypes, memory, traces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.functional import hardest_negatives, sigmoid_similarity, softmax_similarity
from mmcore.ops.sharded import header

pytestmark = pytest.mark.usefixtures("small_slabs")

EXACT = {"rtol": 1e-12, "atol": 1e-12}
WIDTH = 8
# Rows of x and of y on each rank.
LAYOUTS = {
    "even": ([4, 4], [4, 4]),
    "uneven": ([1, 0, 9], [3, 5, 4]),
    "no columns": ([2, 3, 2], [0, 9, 0]),
    "five": ([2, 3, 4, 5, 6], [4, 4, 4, 4, 4]),
}
WORKSPACES = [2**20, 500, 0]


class Matrix:
    """Rows, columns, biases and ids of all ranks."""

    def __init__(self, layout: str, dtype: torch.dtype = torch.float64) -> None:
        self.rows, self.columns = LAYOUTS[layout]
        n, m = sum(self.rows), sum(self.columns)
        generator = torch.Generator().manual_seed(len(layout))
        self.leaves = {
            name: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
            for name, size in {
                "x": (n, WIDTH), "y": (m, WIDTH), "scale": (), "bias": (), "row_bias": (n,),
                "col_bias": (m,),
            }.items()
        }  # fmt: skip
        self.ids = {
            f"{side}_{kind}": torch.randint(-1, 4, (size,), generator=generator)
            for kind in ("label", "group")
            for side, size in (("row", n), ("col", m))
        }
        self.ids["target"] = torch.randint(-1, m, (n,), generator=generator)
        self.upstream = [torch.randn(size, generator=generator).double() for size in (n, m, n, m)]

    def of(self, rank: int, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The rank's part of each."""
        return {name: self.part(name, value, rank) for name, value in values.items()}

    def part(self, name: str, value: Tensor, rank: int) -> Tensor:
        if value.ndim == 0:
            return value
        counts = self.columns if name.startswith(("y", "col")) else self.rows
        return value.split(counts)[rank]

    def upstream_of(self, rank: int) -> list[Tensor]:
        counts = (self.rows, self.columns) * 2
        return [z.split(sizes)[rank] for z, sizes in zip(self.upstream, counts, strict=True)]


PAIRS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "target": (("target",), {}),
    "target, groups": (("target", "row_group", "col_group"), {"denominator": "negatives"}),
    "labels": (("row_label", "col_label"), {}),
    "labels, groups": (
        ("row_label", "col_label", "row_group", "col_group"), {"denominator": "negatives"},
    ),
    "log-sum-exp": (("row_label", "col_label"), {"positives": "log_sum_exp"}),
    "positives alone": (("row_label", "col_label"), {"denominator": "positives"}),
    "rows alone": (("row_label", "col_label"), {"columns": False}),
}  # fmt: skip


def statistics(
    leaves: dict[str, Tensor], upstream: list[Tensor], **options: Any
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The four vectors, and the gradients of a combination of them."""
    given = {name: value.clone().requires_grad_() for name, value in leaves.items()}
    found = softmax_similarity(**given, **options)
    terms = [
        (part * weight).masked_fill(part == -torch.inf, 0).sum()
        for part, weight in zip(found, upstream, strict=True)
        if len(part) == len(weight)
    ]
    gradients = torch.autograd.grad(sum(terms), list(given.values()))
    return [part.detach() for part in found], dict(zip(given, gradients, strict=True))


@pytest.mark.parametrize("workspace", WORKSPACES)
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_over_ranks(layout: str, pairs: str, workspace: int) -> None:
    """Catches a target, a label, a group or a bias that is looked for on this rank alone,
    statistics that merge wrongly, and shares of gradients that are counted twice.
    """
    matrix = Matrix(layout)
    names, options = PAIRS[pairs]
    ids = {name: matrix.ids[name] for name in names}
    values, gradients = statistics(matrix.leaves, matrix.upstream, **ids, **options)

    def run(rank: int) -> Any:
        return statistics(
            matrix.of(rank, matrix.leaves), matrix.upstream_of(rank), process_group="world",
            **matrix.of(rank, ids), **options,
        )  # fmt: skip

    with mmcore.workspace(workspace):
        found = on_ranks(len(matrix.rows), run)
    for i, value in enumerate(values):
        torch.testing.assert_close(torch.cat([parts[i] for parts, _ in found]), value, **EXACT)
    for name, gradient in gradients.items():
        parts = [of_rank[name] for _, of_rank in found]
        joined = torch.cat(parts) if gradient.ndim else torch.stack(parts).sum()
        torch.testing.assert_close(joined, gradient, **EXACT)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_the_kernels_over_ranks(exchange: str, pairs: str) -> None:
    """Catches a kernel whose backward takes it that each softmax of the block sums to 1; a ring in
    which rows and targets part.
    """
    matrix = Matrix("uneven", torch.float32)
    names, options = PAIRS[pairs]
    ids = {name: matrix.ids[name] for name in names}
    values, gradients = statistics(matrix.leaves, matrix.upstream, **ids, **options)

    def run(rank: int) -> Any:
        return statistics(
            matrix.of(rank, matrix.leaves), matrix.upstream_of(rank), process_group="world",
            exchange=exchange, **matrix.of(rank, ids), **options,
        )  # fmt: skip

    with mmcore.workspace(500):
        found = on_ranks(3, run)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for i, value in enumerate(values):
        torch.testing.assert_close(torch.cat([parts[i] for parts, _ in found]), value, **close)
    for name, gradient in gradients.items():
        parts = [of_rank[name] for _, of_rank in found]
        joined = torch.cat(parts) if gradient.ndim else torch.stack(parts).sum()
        torch.testing.assert_close(joined, gradient, **close)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sigmoid_over_ranks(layout: str) -> None:
    """Catches shares of the sums, or of their gradients, that do not add up."""
    matrix = Matrix(layout)
    names = ("x", "y", "scale", "bias")
    leaves = {name: matrix.leaves[name] for name in names}
    labels = {name: matrix.ids[name] for name in ("row_label", "col_label")}

    def run(leaves: dict[str, Tensor], **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        given = [value.clone().requires_grad_() for value in leaves.values()]
        total, positive = sigmoid_similarity(*given, **options)
        value = 2 * total - 3 * positive
        return value.detach(), torch.autograd.grad(value, given)

    value, gradients = run(leaves, **labels)
    with mmcore.workspace(500):
        found = on_ranks(
            len(matrix.rows),
            lambda rank: run(
                matrix.of(rank, leaves), process_group="world", **matrix.of(rank, labels)
            ),
        )
    torch.testing.assert_close(sum(share for share, _ in found), value, **EXACT)
    for i, name in enumerate(names):
        parts = [gradients_of_rank[i] for _, gradients_of_rank in found]
        joined = torch.cat(parts) if name in "xy" else torch.stack(parts).sum()
        torch.testing.assert_close(joined, gradients[i], **EXACT)


@pytest.mark.parametrize("has_groups", [False, True])
def test_hardest_negatives_over_ranks(has_groups: bool) -> None:
    """Catches indices among this rank's rows, and a row's own positive on another slab."""
    counts = [3, 0, 5, 4]
    x, y = (torch.randn(12, WIDTH, dtype=torch.float64) for _ in range(2))
    group = torch.arange(12) // 3 if has_groups else None
    whole = hardest_negatives(x, y, group=group)

    def run(rank: int) -> tuple[Tensor, ...]:
        own, other = (z.split(counts)[rank] for z in (x, y))
        ids = None if group is None else group.split(counts)[rank]
        return hardest_negatives(own, other, group=ids, process_group="world")

    with mmcore.workspace(500):
        found = on_ranks(4, run)
    for i, value in enumerate(whole):
        torch.testing.assert_close(torch.cat([parts[i] for parts in found]), value, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_rounded_once(dtype: torch.dtype) -> None:
    """Catches sums over ranks in 16 bits, whose error grows with their number."""
    size, rows = 8, 32
    x, y = (functional.l2_normalize(torch.randn(size * rows, 32)).to(dtype) for _ in range(2))

    def gradients(x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, ...]:
        sides = [z.clone().requires_grad_() for z in (x, y)]
        loss = functional.clip_loss(*sides, 14.0, gradients="sum", **options)
        return torch.autograd.grad(loss, sides)

    exact, one = gradients(x.double(), y.double()), gradients(x, y)
    with mmcore.workspace(20_000):
        found = on_ranks(
            size,
            lambda rank: gradients(x.split(rows)[rank], y.split(rows)[rank], process_group="world"),
        )
    for i, gradient in enumerate(exact):
        joined = torch.cat([parts[i] for parts in found]).double()
        error, of_one = ((each.double() - gradient).abs().max() for each in (joined, one[i]))
        rounding = torch.finfo(dtype).eps * gradient.abs().max()
        assert error <= 1.1 * of_one + 0.1 * rounding


def test_what_is_saved_does_not_grow_with_the_ranks() -> None:
    """Catches gathered rows that are kept for the backward."""

    def saved(size: int) -> int:
        kept = []

        def pack(value: Tensor) -> Tensor:
            kept.append(value.numel() * value.element_size())
            return value

        x, y = (torch.randn(16, WIDTH, requires_grad=True) for _ in range(2))

        def run(rank: int) -> int:
            if rank:
                functional.clip_loss(x.detach().requires_grad_(), y, 5.0, process_group="world")
                return 0
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
                functional.clip_loss(x, y, 5.0, process_group="world")
            return sum(kept)

        return int(on_ranks(size, run)[0])

    two, eight = saved(2), saved(8)
    assert eight - two <= 6 * 8 * 5  # five numbers of each further rank: how many rows it has
    assert two < 16 * WIDTH * 4 * 4


@pytest.mark.parametrize("size", [2, 8])
def test_slabs_fit_the_workspace(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches all columns gathered at once."""
    from mmcore.ops.sharded import slabs

    rows, largest = 64, []
    start = slabs.start_all_gather

    def watched(rows: Tensor, *arguments: Any) -> Any:
        largest.append(rows.numel() * rows.element_size() * size)
        return start(rows, *arguments)

    monkeypatch.setattr(slabs, "start_all_gather", watched)
    x = torch.randn(rows, WIDTH)
    workspace = 16 * WIDTH * 40
    with mmcore.workspace(workspace):
        on_ranks(size, lambda rank: softmax_similarity(x, x.clone(), process_group="world"))
    assert len(largest) > size
    assert max(largest) <= workspace


def test_results_are_dense_as_compiled_code_expects() -> None:
    """Catches a result that is a view of a larger tensor, which the fake does not say."""
    x, y = torch.randn(4, WIDTH), torch.randn(4, WIDTH)

    def run(rank: int) -> list[Tensor]:
        agreed = header.call(x, None, [4, 4], 1, "", False, False, dist.group.WORLD.group_name, 3)
        found = [agreed, *hardest_negatives(x, y, process_group="world")]
        found += softmax_similarity(x, y, process_group="world")
        labels = {"row_label": torch.arange(4), "columns": False}
        return found + list(softmax_similarity(x, x, **labels, process_group="world"))

    assert all(z.is_contiguous() for found in on_ranks(3, run) for z in found)
