"""Edges of info_nce_loss; the formula: test_objectives.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objective_cases import ROWS, unit_rows
from torch import Tensor

from mmcore import functional
from mmcore.functional import info_nce

pytestmark = pytest.mark.objective


def test_info_nce_of_a_query_that_is_compared_with_nothing(backend: str) -> None:
    """No positive, and all keys and the whole queue of its own group: it takes no part."""
    x, y, queue = unit_rows(), unit_rows(), unit_rows(30)
    target, query_group = torch.arange(ROWS), torch.full((ROWS,), -1)
    target[4], query_group[4] = -1, 7
    key_group = torch.full((ROWS + 30,), 7)
    x.requires_grad_()
    groups = {"query_group": query_group, "key_group": key_group}
    ours = functional.info_nce_loss(x, y, 9.0, queue=queue, target=target, **groups)
    plain = functional.info_nce_loss(x, torch.cat([y, queue]), 9.0, target=target)
    torch.testing.assert_close(ours, plain)
    (gradient,) = torch.autograd.grad(ours, x)
    assert torch.equal(gradient[4], torch.zeros_like(x[4]))
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, x)[0])


def test_a_queue_alone_needs_no_product_with_the_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches an (N, M) matrix that is computed for its diagonal."""
    seen: list[int] = []
    plain = info_nce.softmax_similarity

    def counted(x: Tensor, y: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append(len(y))
        return plain(x, y, *rest, **options)

    monkeypatch.setattr(info_nce, "softmax_similarity", counted)
    queue = unit_rows(30)
    functional.info_nce_loss(unit_rows(), unit_rows(), 9.0, queue=queue, negatives="queue")
    assert seen == [30]


def test_a_query_whose_whole_queue_is_of_its_group(backend: str) -> None:
    """Catches NaN where a query is compared with its own key alone: its loss and gradient are 0."""
    x, y, queue = unit_rows().requires_grad_(), unit_rows(), unit_rows(30)
    groups = {"query_group": torch.arange(ROWS), "key_group": torch.full((ROWS + 30,), 4)}
    loss = functional.info_nce_loss(x, y, 9.0, queue=queue, negatives="queue", **groups)
    logits = torch.cat([(x * y).sum(1, keepdim=True), x @ queue.T], 1).double() * 9
    losses = logits.logsumexp(1) - logits[:, 0]
    expected = (losses.sum() - losses[4]) / ROWS
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.equal(gradient[4], torch.zeros_like(x[4]))


def call(**options: Any) -> Callable[[], Tensor]:
    return lambda: functional.info_nce_loss(unit_rows(), unit_rows(), 9.0, **options)


OUTSIDE = torch.arange(ROWS).roll(1) + 1
REFUSED = [
    (call(negatives="queue"), "queue must be given where negatives is 'queue', got None"),
    (call(negatives="batch"), "negatives must be one of 'all', 'queue', got 'batch'"),
    (
        call(negatives="queue", queue=torch.ones(3, 24), target=OUTSIDE),
        f"target must be in [-1, {ROWS}), got {ROWS}",
    ),
    (
        call(negatives="queue", queue=torch.ones(3, 24), target=-2 - OUTSIDE),
        f"target must be in [-1, {ROWS}), got {-2 - ROWS}",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Tensor], message: str) -> None:
    """Catches an option without a meaning, and a target of which another key would be taken."""
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
