"""Galleries prepared as bytes: who understands them, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from retrieval_oracle import oracle_topk
from torch import Tensor

from mmcore.backends import cpu

if cpu._C is None:
    pytest.skip("the compiled kernels are not built", allow_module_level=True)

from topk_cases import BLOCK, check, inputs

from mmcore.backends.cpu import topk


def test_prepared_on_another_instruction_set() -> None:
    """Catches a prepared gallery that only the instruction set understands that made it."""
    x, y = torch.randn(20, 33), torch.randn(2 * BLOCK, 33)
    expected = oracle_topk(inputs(x, y))
    before = cpu._C.instruction_set()
    try:
        for name in cpu._C.instruction_sets():
            cpu._C.select_instruction_set(name)
            prepared = topk.prepare(y, "inner_product")
            for other in cpu._C.instruction_sets():
                cpu._C.select_instruction_set(other)
                check(inputs(x, y, prepared=prepared), expected=expected)
    finally:
        cpu._C.select_instruction_set(before)


def test_prepared_is_a_quarter() -> None:
    """Catches a prepared gallery that few queries read no faster than the rows."""
    y = torch.randn(1000, 512)
    assert topk.prepare(y, "l2").nbytes < 0.27 * y.nbytes


Y = torch.randn(BLOCK, 16, generator=torch.Generator().manual_seed(0))


def _with(at: int, value: int) -> Tensor:
    prepared = topk.prepare(Y, "cosine")
    prepared[at] = value
    return prepared


REFUSED_PREPARED: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: torch.zeros(7, dtype=torch.uint8), "prepared must begin with a header, got 7 bytes"),
    (lambda: _with(0, 0), "prepared must be a prepared gallery, got other bytes"),
    (lambda: _with(8, 9), "prepared must be of version 1, got 9"),
    (
        lambda: topk.prepare(Y[1:], "cosine"),
        "prepared must be of a gallery of shape (300, 16), got (299, 16)",
    ),
    (
        lambda: topk.prepare(Y.half(), "cosine"),
        "prepared must be of a gallery of float32, got float16",
    ),
    (lambda: topk.prepare(Y, "l2"), "prepared must be for the metric cosine, got l2"),
    (lambda: topk.prepare(Y, "cosine")[:-1], "bytes, got"),
    (lambda: topk.prepare(Y + 1, "cosine"), "prepared must be of this gallery"),
]


@pytest.mark.parametrize(("prepared", "message"), REFUSED_PREPARED)
def test_prepared_that_is_refused(prepared: Callable[[], Tensor], message: str) -> None:
    """Catches bytes of another gallery, whose bounds would be wrong, or that end early."""
    with pytest.raises(ValueError, match=re.escape(message)):
        topk.search(inputs(Y[:3], Y, metric="cosine", prepared=prepared()), None)


def test_prepared_at_any_address() -> None:
    """Catches a prepared gallery from a file that is read as if it were aligned."""
    prepared = topk.prepare(Y, "cosine")
    moved = torch.empty(len(prepared) + 1, dtype=torch.uint8)[1:]
    moved[:] = prepared
    check(inputs(Y[:3], Y, metric="cosine", prepared=moved))
