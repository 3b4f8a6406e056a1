"""What does not go together over several ranks: an error on every rank, before any data moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor

import mmcore
from mmcore import functional

X = torch.randn(4, 6)
CLASSES = torch.arange(4)
clip = functional.clip_loss


def errors(size: int, call: Callable[[int], Any]) -> list[str]:
    """The error of each rank."""

    def run(rank: int) -> str:
        try:
            call(rank)
        except (TypeError, ValueError, NotImplementedError) as error:
            return f"{type(error).__name__}: {error}"
        return "no error"

    return on_ranks(size, run)


def rows(columns: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(4, columns, dtype=dtype)


ALIKE: dict[str, tuple[Callable[[int], Any], str]] = {
    "width": (
        lambda rank: clip(rows(6 + (rank == 1)), rows(6 + (rank == 1)), 1.0, process_group="world"),
        "x must be alike on all ranks of process group '0': rank 1 has 7 columns, float32, without "
        "a gradient, rank 0 has 6 columns",
    ),
    "dtype": (
        lambda rank: clip(
            *[rows(6, torch.float64 if rank == 2 else torch.float32)] * 2, 1.0,
            process_group="world",
        ),
        "x must be alike on all ranks of process group '0': rank 2 has 6 columns, float64",
    ),
    "gradient": (
        lambda rank: clip(rows().requires_grad_(rank > 0), rows(), 1.0, process_group="world"),
        "x must be alike on all ranks of process group '0': rank 1 has 6 columns, float32, with a",
    ),
    "scale": (
        lambda rank: clip(X, X, torch.ones((), requires_grad=rank == 2), process_group="world"),
        "scale must be alike on all ranks of process group '0': rank 2 has float32, with a",
    ),
    "labels": (
        lambda rank: functional.siglip_loss(
            X, X.clone(), 1.0, row_label=CLASSES if rank else None,
            col_label=CLASSES if rank else None, process_group="world",
        ),
        "target|row_label must be alike on all ranks of process group '0': rank 1 has int64",
    ),
    "exchange": (
        lambda rank: clip(X, X, 1.0, process_group="world", exchange=["ring", "gather"][rank > 0]),
        "exchange must be alike on all ranks of process group '0': rank 1 has 'gather', rank 0 has",
    ),
    "function": (
        lambda rank: (clip if rank else functional.nt_xent_loss)(X, X, 1.0, process_group="world"),
        "the function must be alike on all ranks of process group '0': rank 1 has softmax_simi",
    ),
    "target": (
        lambda rank: functional.softmax_similarity(
            X, X.clone(), target=torch.tensor([0, 1, 2, 12 if rank == 2 else 3]),
            process_group="world",
        ),
        r"target must be in \[-1, 12\), the columns of all ranks, got 12 on rank 2 of process",
    ),
    "diagonal": (
        lambda rank: functional.softmax_similarity(X, X[: 4 - rank], process_group="world"),
        "target must be given where x has more rows than y: got 12 and 9 on all ranks of process",
    ),
    "target of own keys": (
        lambda rank: functional.info_nce_loss(
            X, X.clone(), 1.0, queue=X, negatives="queue",
            target=torch.tensor([0, 1, 2, 12 if rank == 1 else 3]), process_group="world",
        ),
        r"target must be in \[-1, 12\), the columns of all ranks, got 12 on rank 1 of process",
    ),
    "rows of a pair": (
        lambda rank: functional.multimodal_loss(
            {"a": X, "b": X.clone(), "c": X[:3]}, 1.0, process_group="world"
        ),
        r"features\['c'\] must have 4 rows to match 'a' where no ids are given, got 3",
    ),
    "no rows": (
        lambda rank: clip(X[:0], X[:0], 1.0, process_group="world"),
        "one of the ranks of process group '0' must have at least 1 row, got none on all",
    ),
    "gram width": (
        lambda rank: functional.barlow_twins_loss(
            *[rows(6 + (rank == 2))] * 2, process_group="world"
        ),
        "first must be alike on all ranks of process group '0': rank 2 has 7 columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_all_ranks_raise_the_same_error(name: str) -> None:
    """Catches a mismatch that only some ranks see, while the others wait or abort."""
    call, message = ALIKE[name]
    found = errors(3, call)
    assert len(set(found)) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(found[0])


REFUSED: dict[str, tuple[Callable[[int], Any], str]] = {
    "rows": (
        lambda rank: clip(X, X[:3] if rank == 1 else X, 1.0, process_group="world"),
        "ValueError: y must have 4 rows to match x, got 3",
    ),
    "scale": (
        lambda rank: functional.nt_xent_loss(
            X, X, -1.0 if rank == 1 else 1.0, process_group="world"
        ),
        "ValueError: scale, the inverse temperature, must be at least 0, got -1.0",
    ),
    "type": (
        lambda rank: functional.vse_loss(X, [1] if rank == 1 else X, process_group="world"),
        "TypeError: y must be a tensor, got list",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_rank_that_refuses_its_arguments_tells_the_others(name: str) -> None:
    """Catches ranks that wait until their timeout for one that has raised an error."""
    call, message = REFUSED[name]
    first, own, last = errors(3, call)
    assert own == message
    assert first == last
    assert "ValueError: rank 1 of process group '0' refused its arguments: " in first
    assert message in first


def test_groups_that_are_none() -> None:
    """Catches a call that computes for itself although a group was named."""
    with pytest.raises(ValueError, match=r"process_group must be None where torch\.distributed is"):
        clip(X, X, 1.0, process_group="world")
    with pytest.raises(ValueError, match="gradients must be one of 'mean', 'sum', got 'median'"):
        clip(X, X, 1.0, gradients="median")
    with pytest.raises(ValueError, match="exchange must be one of 'auto', 'gather', 'ring'"):
        clip(X, X, 1.0, exchange="tree")
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        mmcore.distributed.row_offset(-1)


def test_groups_of_another_kind() -> None:
    """Catches a group of which this process is no part, and names that torch does not know."""
    outside = errors(2, lambda rank: clip(X, X, 1.0, process_group=dist.new_group([0])))
    assert outside == [
        "no error",
        "ValueError: process_group must be one that this process, of global rank 1, is in",
    ]
    unknown = errors(2, lambda rank: clip(X, X, 1.0, process_group="data"))
    assert all("must be None, 'world', a ProcessGroup or a DeviceMesh" in each for each in unknown)
