"""Every objective over rows that several ranks hold, beside one process that has them all."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from sharded_cases import COUNTS, WIDTH, Spread, value_and_gradients
from torch import Tensor

import mmcore
from mmcore import functional, metrics
from mmcore.bench.catalogue import CASES, ROWS, Case, Draw

pytestmark = pytest.mark.usefixtures("small_slabs")

EXACT = {"rtol": 1e-12, "atol": 1e-12}
SIZES = list(COUNTS)
# Of the columns of all ranks at once, and a few at a time.
WORKSPACES = {"one slab": 2**20, "slabs": 4000}


def number(case: Case) -> int:
    return zlib.crc32(case.id.encode())


def calls() -> list[Any]:
    """Each case at every number of ranks; the fast tier has one of them."""
    return [
        pytest.param(
            case, size, id=f"{case.id}-{size}",
            marks=[] if size == SIZES[1:][number(case) % 4] else [pytest.mark.full],
        )
        for case in CASES.values()
        if "shuffled" not in case.id
        for size in SIZES
    ]  # fmt: skip


def check_equals_one_process(case: Case, size: int, **options: Any) -> None:
    spread = Spread(case, COUNTS[size])
    values, gradients = value_and_gradients(case, spread.arguments)
    found = on_ranks(
        size,
        lambda rank: value_and_gradients(case, spread.of(rank), process_group="world", **options),
    )
    factor = size if options.get("gradients", "mean") == "mean" else 1
    for of_rank, _ in found:
        torch.testing.assert_close(of_rank, values, **EXACT)
        assert all(torch.equal(*pair) for pair in zip(of_rank, found[0][0], strict=True))
    for path, gradient in gradients.items():
        joined = spread.joined(path, [of_rank[path] for _, of_rank in found])
        torch.testing.assert_close(joined, factor * gradient, **EXACT)


@pytest.mark.parametrize(("case", "size"), calls())
def test_ranks_equal_one_process(case: Case, size: int) -> None:
    """Catches a count, a mean, an id or an order that is this rank's and not that of all; a factor
    of a gradient; a hang where a rank has no rows.
    """
    kinds = list(WORKSPACES.values())
    options = {"gradients": "sum"} if number(case) // 8 % 2 else {}
    with mmcore.workspace(kinds[number(case) // 4 % 2]):
        check_equals_one_process(case, size, **options)


@pytest.mark.parametrize("gradients", ["mean", "sum"])
@pytest.mark.parametrize("slabs", WORKSPACES)
def test_both_conventions_in_slabs(gradients: str, slabs: str) -> None:
    """Catches a factor that is right for one convention, and a slab that is counted twice."""
    with mmcore.workspace(WORKSPACES[slabs]):
        for name in ("clip_loss, label smoothing, bias", "siglip_loss", "gram_loss, 3 modalities"):
            check_equals_one_process(CASES[name], 3, gradients=gradients)


@pytest.mark.parametrize("size", SIZES)
def test_shuffled_negatives_are_drawn_once(size: int) -> None:
    """Catches ranks that shuffle the same rows in different orders; rows or positives of another
    place in the order.
    """
    case = CASES["symile_loss, 3 modalities, shuffled"]
    spread = Spread(case, COUNTS[size])

    def run(arguments: dict[str, Any], **options: Any) -> tuple[Any, Any]:
        generator = torch.Generator().manual_seed(5)
        return value_and_gradients(case, arguments, generator=generator, **options)

    values, gradients = run(spread.arguments)
    found = on_ranks(size, lambda rank: run(spread.of(rank), process_group="world"))
    for path, gradient in gradients.items():
        joined = spread.joined(path, [of_rank[path] for _, of_rank in found])
        torch.testing.assert_close(joined, size * gradient, **EXACT)
    for of_rank, _ in found:
        torch.testing.assert_close(of_rank, values, **EXACT)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_objective_takes_a_group(row: Any) -> None:
    """Catches an objective that compares rows and does not know of those of other processes."""
    names = list(inspect.signature(row.function).parameters)
    assert {"process_group", "gradients"} <= set(names)
    assert {"process_group", "gradients"} <= set(inspect.signature(row.module).parameters)


def test_modules_hand_on_the_group() -> None:
    """Catches a module that takes a group and computes for itself."""
    spread = Spread(CASES["clip_loss"], COUNTS[2])
    whole = functional.clip_loss(**spread.arguments)
    loss = mmcore.nn.ClipLoss(process_group="world", gradients="sum")

    def run(rank: int) -> Tensor:
        x, y, scale = spread.of(rank).values()
        return loss(x, y, scale)

    torch.testing.assert_close(on_ranks(2, run), [whole, whole], **EXACT)


METRICS: dict[str, Callable[..., Tensor]] = {
    "modality_gap": metrics.modality_gap,
    "effective_rank": lambda x, y, **group: metrics.effective_rank(x, **group),
    "linear_cka": metrics.linear_cka,
    "linear_separability": metrics.linear_separability,
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_metrics_over_ranks(name: str, size: int) -> None:
    """Catches means of means, and rows of even number that are counted on each rank anew."""
    x, y = Draw(12, 6, dtype=torch.float64).columns()
    sides = [z.split(COUNTS[size]) for z in (x, y)]
    found = on_ranks(
        size, lambda rank: METRICS[name](*(z[rank] for z in sides), process_group="world")
    )
    torch.testing.assert_close(found, [METRICS[name](x, y)] * size, **EXACT)


def test_row_offset() -> None:
    """Catches an offset that counts this rank's own rows, or in another order."""
    offset = mmcore.distributed.row_offset
    assert on_ranks(3, lambda rank: offset([5, 0, 7][rank])) == [0, 5, 5]


def test_a_subgroup_without_rank_0() -> None:
    """Catches global ranks taken for ranks of the group, and a group that waits for all."""
    spread = Spread(CASES["clip_loss, groups"], COUNTS[2])
    values, gradients = value_and_gradients(spread.case, spread.arguments)

    def run(rank: int) -> Any:
        group = dist.new_group([1, 3])
        if rank in (0, 2):
            return None
        return value_and_gradients(spread.case, spread.of(rank // 2), process_group=group)

    found = on_ranks(4, run)[1::2]
    for path, gradient in gradients.items():
        joined = spread.joined(path, [of_rank[path] for _, of_rank in found])
        torch.testing.assert_close(joined, 2 * gradient, **EXACT)
    torch.testing.assert_close(found[1][0], values, **EXACT)


def test_an_sgd_step_of_a_learned_scale_and_bias() -> None:
    """Catches a gradient that is right up to a factor: residuals, and not norms, are compared."""
    case = CASES["siglip_loss"]
    spread = Spread(case, [1, 11])
    _, gradients = value_and_gradients(case, spread.arguments)
    found = on_ranks(
        2, lambda rank: value_and_gradients(case, spread.of(rank), process_group="world")
    )
    for path in (("scale",), ("bias",)):
        mean = torch.stack([of_rank[path] for _, of_rank in found]).mean()
        residual = spread.arguments[path[0]] - 0.1 * mean
        expected = spread.arguments[path[0]] - 0.1 * gradients[path]
        torch.testing.assert_close(residual, expected, **EXACT)


def test_the_same_bits_twice() -> None:
    """Catches sums over ranks in the order in which they come."""
    case = CASES["clip_loss"]
    spread = Spread(case, COUNTS[5])
    with mmcore.workspace(4000):
        first, second = (
            on_ranks(5, lambda r: value_and_gradients(case, spread.of(r), process_group="world"))
            for _ in range(2)
        )
    for (values, gradients), (again, gradients_again) in zip(first, second, strict=True):
        assert torch.equal(values[0], again[0])
        assert all(torch.equal(gradients[path], gradients_again[path]) for path in gradients)


def test_two_backwards_and_an_expanded_gradient() -> None:
    """Catches a backward that frees what it needs, and gradients of strides that bytes lack."""
    x, y = (functional.l2_normalize(z) for z in Draw(12, WIDTH, dtype=torch.float64).sides())

    def run(rank: int) -> tuple[Tensor, Tensor]:
        own, other = (z.split(COUNTS[3])[rank].clone().requires_grad_() for z in (x, y))
        found = functional.softmax_similarity(own, other, 5.0, process_group="world")
        total = found.row_lse.sum() + found.col_lse.sum()
        first, second = (
            torch.autograd.grad(total, (own, other), retain_graph=True) for _ in range(2)
        )
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        return first

    own, other = (z.clone().requires_grad_() for z in (x, y))
    found = functional.softmax_similarity(own, other, 5.0)
    gradients = torch.autograd.grad(found.row_lse.sum() + found.col_lse.sum(), (own, other))
    for i, parts in enumerate(zip(*on_ranks(3, run), strict=True)):
        torch.testing.assert_close(torch.cat(parts), gradients[i], **EXACT)
