"""sigmoid_similarity over ranks: gradients that the forward keeps, and halves where y is x."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.functional import sigmoid_similarity
from mmcore.ops.sharded import sigmoid_similarity as op

pytestmark = pytest.mark.usefixtures("small_slabs")

EXACT, CLOSE = {"rtol": 1e-12, "atol": 1e-12}, {"rtol": 1e-4, "atol": 1e-5}
WIDTH = 8
# Rows of each rank.
COUNTS = ([3, 4], [5, 0, 2], [2, 3, 0, 5, 6], [4, 1, 3, 0, 2, 5, 1, 1])
# None of x; all of x and y of each rank and a few columns; all.
WORKSPACES = {"not held": 100, "slabs": 4 * (12 * WIDTH + 1), "held": 2**20}
# What ranks back-propagate to total and to positive.
UPSTREAM = {
    "of a loss": lambda rank: (0.5, -0.5), "of each rank": lambda rank: (0.5 + rank, -0.5 - rank),
    "of sums": lambda rank: (2.0, -3.0),
}  # fmt: skip


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The passes of rank 0 over blocks of the matrix: their names, and how many pairs they have."""
    found: list[tuple[str, int]] = []

    def watched(name: str, run: Any, inputs: Any, *others: Any) -> Any:
        if dist.is_initialized() and dist.get_rank() == 0:
            found.append((name, len(inputs.x) * len(inputs.keys)))
        return run(inputs, *others)

    def serves(backend: str) -> op.Run:
        run = op.Run(backend)
        of_backend = {name: getattr(run.implementation, name) for name in ("forward", "backward")}
        run.implementation = SimpleNamespace(
            forward=lambda *inputs: watched("forward", of_backend["forward"], *inputs),
            backward=lambda *inputs: watched("backward", of_backend["backward"], *inputs),
        )
        return run

    monkeypatch.setattr(op.family, "serves", serves)
    return found


def sums(
    leaves: list[Tensor], weights: tuple[float, float], is_same: bool, **options: Any
) -> list[Tensor]:
    """total and positive, and the gradients of a combination."""
    given = [value.clone().requires_grad_() for value in leaves]
    x, *others = given
    found = sigmoid_similarity(x, x if is_same else others.pop(0), *others, **options)
    value = sum(weight * part for weight, part in zip(weights, found, strict=True))
    return [*(part.detach() for part in found), *torch.autograd.grad(value, given)]


class Matrix:
    """Rows of all ranks, with labels, groups or targets."""

    def __init__(self, counts: list[int], kind: str, dtype: torch.dtype, is_same: bool) -> None:
        self.counts, self.is_same, rows = counts, is_same, sum(counts)
        draw = torch.Generator().manual_seed(rows)
        sides = [torch.randn(rows, WIDTH, generator=draw).to(dtype) for _ in range(2 - is_same)]
        self.leaves = [*sides, torch.tensor(1.5).double(), torch.tensor(-1.0).double()]
        number = torch.arange(rows)
        label = torch.randint(-1, 4, (rows,), generator=draw)
        self.ids = {
            "labels": {"row_label": label, "row_group": number},
            "targets": {"target": number}, "none": {"target": torch.full((rows,), -1)},
        }[kind]  # fmt: skip
        if not is_same:
            columns = {name: name.replace("row", "col") for name in self.ids if "row" in name}
            self.ids |= {other: self.ids[name] for name, other in columns.items()}

    def of(self, rank: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        leaves = [z.split(self.counts)[rank] if z.ndim else z for z in self.leaves]
        return leaves, {name: z.split(self.counts)[rank] for name, z in self.ids.items()}

    def run(self, rank: int, weights: tuple[float, float]) -> list[Tensor]:
        leaves, ids = self.of(rank)
        return sums(leaves, weights, self.is_same, process_group="world", **ids)

    def whole(self, upstream: list[tuple[float, float]]) -> list[Tensor]:
        """Σ over ranks of the sums over each rank's rows, by one process."""
        leaves = [value.clone().requires_grad_() for value in self.leaves]
        x, *others = leaves
        y = x if self.is_same else others.pop(0)
        values, parts = [], []
        rows = {name: z for name, z in self.ids.items() if name in ("row_label", "row_group")}
        columns = {f"col{name[3:]}": self.ids.get(f"col{name[3:]}", z) for name, z in rows.items()}
        for rank, weights in enumerate(upstream):
            own = {n: z.split(self.counts)[rank] for n, z in {**self.ids, **rows}.items()}
            if not self.counts[rank]:
                parts.append(torch.zeros(2, dtype=torch.float64))
                continue
            found = sigmoid_similarity(
                x.split(self.counts)[rank], y.clone(), *others, **{**own, **columns}
            )
            parts.append(torch.stack([part.detach() for part in found]))
            values += [weight * part for weight, part in zip(weights, found, strict=True)]
        return [torch.stack(parts), *torch.autograd.grad(sum(values), leaves)]


@pytest.mark.op
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("workspace", WORKSPACES)
@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize(("kind", "is_same"), [
    ("targets", False), ("labels", False), ("targets", True), ("labels", True), ("none", True),
])  # fmt: skip
def test_sums_and_gradients_of_ranks(
    kind: str, is_same: bool, upstream: str, workspace: str, counts: list[int], dtype: torch.dtype
) -> None:
    """Catches gradients that are kept for other upstream gradients than come, or for one rank
    alone; the share of a block that stands for its transpose.
    """
    matrix = Matrix(counts, kind, dtype, is_same)
    weights = [UPSTREAM[upstream](rank) for rank in range(len(counts))]
    parts, *gradients = matrix.whole(weights)
    with mmcore.workspace(WORKSPACES[workspace]):
        found = on_ranks(len(counts), lambda rank: matrix.run(rank, weights[rank]))
    close = EXACT if dtype == torch.float64 else CLOSE
    for of_rank, part in zip(found, parts, strict=True):
        torch.testing.assert_close(torch.stack(of_rank[:2]), part, **close)
    for i, gradient in enumerate(gradients, start=2):
        shares = [of_rank[i] for of_rank in found]
        joined = torch.cat(shares) if gradient.ndim else torch.stack(shares).sum()
        torch.testing.assert_close(joined, gradient, **close)


@pytest.mark.parametrize("is_same", [False, True])
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_a_backward_has_nothing_left_to_compute(
    exchange: str, is_same: bool, passes: list[tuple[str, int]]
) -> None:
    """Catches a matrix that is computed a second time; other bits the second time."""
    counts = [4, 4, 4]
    x, y = (torch.randn(12, WIDTH) for _ in range(2))

    def run(rank: int) -> list[Tensor]:
        own, other = (z.split(counts)[rank].clone().requires_grad_() for z in (x, y))
        other = own if is_same else other
        loss = functional.siglip_loss(own, other, 3.0, process_group="world", exchange=exchange)
        dist.barrier()
        before = len(passes)
        loss.backward()
        assert len(passes) == before
        return [loss.detach(), own.grad, other.grad]

    found = on_ranks(3, lambda rank: [run(rank), run(rank)])
    pairs = 4 * 4 * (2 if is_same else 3)
    assert sum(size for name, size in passes if name == "forward") == 2 * pairs
    for first, second in found:
        assert all(torch.equal(*each) for each in zip(first, second, strict=True))


def test_ranks_of_different_workspaces_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches ranks of which one keeps gradients and another waits for rows."""
    counts = [6, 2]
    x, y = (torch.randn(8, WIDTH, dtype=torch.float64) for _ in range(2))
    sizes = {0: 2**20, 1: 4 * (4 * WIDTH + 1)}  # enough for its own rows, not for the other's
    monkeypatch.setattr("mmcore.backends.workspace.current", lambda device: sizes[dist.get_rank()])

    def loss(x: Tensor, y: Tensor, **options: Any) -> list[Tensor]:
        sides = [z.clone().requires_grad_() for z in (x, y)]
        value = functional.siglip_loss(*sides, 3.0, gradients="sum", **options)
        return [value.detach(), *torch.autograd.grad(value, sides)]

    found = on_ranks(
        2, lambda rank: loss(*(z.split(counts)[rank] for z in (x, y)), process_group="world")
    )
    monkeypatch.undo()
    value, *gradients = loss(x, y)
    torch.testing.assert_close([each[0] for each in found], [value, value], **EXACT)
    for i, gradient in enumerate(gradients, start=1):
        torch.testing.assert_close(torch.cat([each[i] for each in found]), gradient, **EXACT)
