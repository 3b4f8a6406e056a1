"""Every example of docs/pairs.md, held against the library on every backend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional

pytestmark = pytest.mark.op

PAGE = (Path(__file__).parents[1] / "docs" / "pairs.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^### ([^\n]+)\n[^#]*?```python\n(.*?)```\n\n```text\n(.*?)```", re.M | re.S)
SCALE, BIAS = 3.0, -0.5
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}  # a few float32 logits below 20, added up


class Example(NamedTuple):
    title: str
    call: str
    matrix: str

    def cells(self, kinds: str) -> Tensor:
        """(4, 4) booleans: where the page shows one of `kinds`."""
        rows = self.matrix.splitlines()
        return torch.tensor([[cell in kinds for cell in row.split()] for row in rows])

    def arguments(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What the call gives for y, which may be x, and its keyword arguments."""

        def softmax_similarity(_: Tensor, second: Tensor, **options: Any) -> Any:
            return second, options

        names = {"x": x, "y": y, "tensor": torch.tensor, "arange": torch.arange}
        return eval(self.call.strip(), {"softmax_similarity": softmax_similarity, **names})

    def is_of_two_tensors(self) -> bool:
        return self.arguments(torch.empty(0), torch.empty(1))[0].numel() == 1

    def has_denominator_all(self) -> bool:
        return "denominator" not in self.call or '"all"' in self.call


EXAMPLES = [Example(*parts) for parts in EXAMPLE.findall(PAGE)]


def of(examples: Sequence[Example]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", examples, ids=lambda example: example.title)


def test_the_page_is_understood() -> None:
    assert [example.title for example in EXAMPLES] == re.findall(r"^### (.+)$", PAGE, re.M)
    assert len(EXAMPLES) >= 10
    for example in EXAMPLES:
        assert re.fullmatch(r"([Ppn·] [Ppn·] [Ppn·] [Ppn·]\n){4}", example.matrix), example.title


def features(example: Example) -> tuple[Tensor, Tensor, dict[str, Any]]:
    x, y = torch.randn(4, 6).requires_grad_(), torch.randn(4, 6).requires_grad_()
    return x, *example.arguments(x, y)


def log_sum_exp(logits: Tensor, counted: Tensor, dim: int) -> Tensor:
    """-inf without a gradient where nothing is counted; torch's gradient would be NaN."""
    has_any = counted.any(dim, keepdim=True)
    result = logits.masked_fill(~counted & has_any, -torch.inf).logsumexp(dim)
    return result.masked_fill(~has_any.squeeze(dim), -torch.inf)


def check(actual: Sequence[Tensor], exact: Sequence[Tensor], x: Tensor, y: Tensor) -> None:
    """Values, and the gradients of a fixed combination of those that are finite."""
    leaves = [x] if y is x else [x, y]
    gradients = []
    for parts in (actual, exact):
        flat = torch.cat([part.reshape(-1) for part in parts])
        weights = torch.linspace(-1, 2, len(flat), dtype=torch.float64)
        total = (flat * weights)[flat.isfinite()].sum()
        gradients.append(torch.autograd.grad(total, leaves))
    torch.testing.assert_close(list(actual), list(exact), **TOLERANCE)
    torch.testing.assert_close(*gradients, **TOLERANCE)


@of(EXAMPLES)
def test_softmax_similarity(backend: str, example: Example) -> None:
    x, y, options = features(example)
    logits = SCALE * x.double() @ y.double().T + BIAS
    counted, of_positives = example.cells("Pn"), logits.masked_fill(~example.cells("Pp"), 0)
    exact = [
        log_sum_exp(logits, counted, 1),
        log_sum_exp(logits, counted, 0),
        of_positives.sum(1),
        of_positives.sum(0),
    ]
    check(functional.softmax_similarity(x, y, SCALE, BIAS, **options), exact, x, y)


@of([example for example in EXAMPLES if example.has_denominator_all()])
def test_sigmoid_similarity(backend: str, example: Example) -> None:
    x, y, options = features(example)
    options.pop("denominator", None)
    logits = SCALE * x.double() @ y.double().T + BIAS
    exact = [F.softplus(logits)[example.cells("Pn")].sum(), logits[example.cells("Pp")].sum()]
    check(functional.sigmoid_similarity(x, y, SCALE, BIAS, **options), exact, x, y)


@of([example for example in EXAMPLES if example.is_of_two_tensors()])
def test_gradient_of_every_logit(backend: str, example: Example) -> None:
    """Against unit rows the gradient of the features is that of the logits, pair by pair."""
    logits, unit_rows = torch.randn(4, 4).requires_grad_(), torch.eye(4)
    _, options = example.arguments(logits, unit_rows)
    statistics = functional.softmax_similarity(logits, unit_rows, **options)
    of_row_lse, of_col_lse, of_row_pos, of_col_pos = (
        torch.autograd.grad(part.sum(), logits, retain_graph=True)[0] for part in statistics
    )
    counted, positive = example.cells("Pn"), example.cells("Pp").float()
    at_counted = logits.detach().masked_fill(~counted, -torch.inf)
    # Where nothing is counted torch's softmax is 0 ÷ 0, and ours must be 0.
    torch.testing.assert_close(of_row_lse, at_counted.softmax(1).nan_to_num(0), **TOLERANCE)
    torch.testing.assert_close(of_col_lse, at_counted.softmax(0).nan_to_num(0), **TOLERANCE)
    assert (of_row_lse[~counted] == 0).all()
    assert (of_col_lse[~counted] == 0).all()
    torch.testing.assert_close(of_row_pos, positive)
    torch.testing.assert_close(of_col_pos, positive)
