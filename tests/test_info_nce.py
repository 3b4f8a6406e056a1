"""info_nce_loss against the formula over all logits."""

from __future__ import annotations

import pytest
import torch
from objective_cases import ROWS, check, cross_entropy, draws, every_kind, masked, unit_rows
from torch import Tensor

from mmcore import functional

pytestmark = pytest.mark.objective


@every_kind
def test_info_nce_with_more_keys_and_targets(backend: str, kind: str) -> None:
    target = torch.randint(-1, ROWS + 40, (ROWS,))

    def plain(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        logits = scale * (x @ torch.cat([y, y[:40] ** 3]).T)
        return cross_entropy(logits, target, ignore_index=-1)

    def ours(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return functional.info_nce_loss(x, torch.cat([y, y[:40] ** 3]), scale, target=target)

    check(ours, plain, draws(kind))


@every_kind
def test_info_nce_with_sampling_bias_and_margin(backend: str, kind: str) -> None:
    log_q, target = torch.rand(ROWS).log(), torch.arange(ROWS)

    def plain(x: Tensor, y: Tensor, log_q: Tensor, scale: Tensor) -> Tensor:
        logits = scale * (x @ y.T) - log_q
        return cross_entropy(logits - 0.2 * scale * torch.eye(ROWS, dtype=x.dtype), target)

    def ours(x: Tensor, y: Tensor, log_q: Tensor, scale: Tensor) -> Tensor:
        return functional.info_nce_loss(x, y, scale, log_q=log_q, margin=0.2)

    check(ours, plain, [[x, y, log_q, scale] for x, y, scale in draws(kind)])


@every_kind
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_info_nce_with_a_queue(backend: str, kind: str, margin: float) -> None:
    queue, log_q, target = unit_rows(70), torch.rand(ROWS + 70).log(), torch.arange(ROWS)
    query_group, key_group = (torch.randint(-1, 30, (size,)) for size in (ROWS, ROWS + 70))
    left_out = (query_group[:, None] == key_group) & (query_group[:, None] >= 0)
    left_out[target, target] = False

    def plain(x: Tensor, y: Tensor, queue: Tensor, log_q: Tensor, scale: Tensor) -> Tensor:
        logits = scale * (x @ torch.cat([y, queue]).T) - log_q
        logits = logits - margin * scale * torch.eye(*logits.shape, dtype=x.dtype)
        return cross_entropy(masked(logits, ~left_out), target)

    def ours(x: Tensor, y: Tensor, queue: Tensor, log_q: Tensor, scale: Tensor) -> Tensor:
        return functional.info_nce_loss(
            x, y, scale, queue=queue, log_q=log_q, margin=margin,
            query_group=query_group, key_group=key_group,
        )  # fmt: skip

    check(ours, plain, [[x, y, queue, log_q, scale] for x, y, scale in draws(kind)])


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
