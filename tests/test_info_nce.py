"""info_nce_loss of a query that is compared with nothing; the formula: test_objectives.py."""

from __future__ import annotations

import pytest
import torch
from objective_cases import ROWS, unit_rows

from mmcore import functional

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
