"""What every family of the Triton backend keeps to: rounding, kept sizes, wanted gradients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from machines import HALVES
from torch import Tensor

pytest.importorskip("triton")
from mmcore.backends.inputs import (
    Gradients,
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.backends.reference.project import (
    ProjectionInputs,
    ProjectionUpstream,
    ProjectionWanted,
)
from mmcore.backends.triton import kept_size
from mmcore.backends.triton.project import backward as project_backward
from mmcore.backends.triton.project import forward as project_forward
from mmcore.backends.triton.sigmoid_similarity import backward as sigmoid_backward
from mmcore.backends.triton.sigmoid_similarity import forward as sigmoid_forward
from mmcore.backends.triton.softmax_similarity import backward as softmax_backward
from mmcore.backends.triton.softmax_similarity import forward as softmax_forward

ROOMY = 2**24
Case = Callable[[torch.dtype, bool], Gradients]


def matrix(dtype: torch.dtype, has_y: bool = True) -> SimilarityInputs:
    x, y = (F.normalize(torch.randn(rows, 24), dim=1).to(dtype) for rows in (40, 50))
    target = torch.arange(40).roll(1)
    target[3] = -1
    return SimilarityInputs(
        x, y if has_y else None, torch.tensor(9.0), torch.tensor(-1.0), None, None, target, None,
        None, None, None,
    )  # fmt: skip


def softmax(dtype: torch.dtype, rounds: bool) -> Gradients:
    inputs = matrix(dtype)
    found = softmax_forward(inputs, kept_size.softmax_similarity(ROOMY, inputs))
    upstream = SoftmaxUpstream(*(torch.linspace(-1, 2, len(it)).double() for it in found[:4]))
    return softmax_backward(inputs, found, upstream, SoftmaxWanted(True, True, True), rounds)


def softmax_of_own_transpose(dtype: torch.dtype, rounds: bool) -> Gradients:
    inputs = matrix(dtype, has_y=False)
    found = softmax_forward(inputs, 0)
    upstream = SoftmaxUpstream(*(torch.linspace(-1, 2, len(it)).double() for it in found[:4]))
    return softmax_backward(inputs, found, upstream, SoftmaxWanted(True, False, True), rounds)


def sigmoid(dtype: torch.dtype, rounds: bool, workspace: int = 0, has_y: bool = True) -> Gradients:
    inputs = matrix(dtype, has_y)
    found = sigmoid_forward(inputs, kept_size.sigmoid_similarity(workspace, inputs))
    upstream = SigmoidUpstream(torch.tensor(2.0).double(), torch.tensor(-1.5).double())
    wanted = SigmoidWanted(True, has_y, True, True)
    return sigmoid_backward(inputs, found, upstream, wanted, rounds)


def cached_sigmoid(dtype: torch.dtype, rounds: bool) -> Gradients:
    return sigmoid(dtype, rounds, ROOMY)


def cached_sigmoid_of_own_transpose(dtype: torch.dtype, rounds: bool) -> Gradients:
    return sigmoid(dtype, rounds, ROOMY, has_y=False)


def project(dtype: torch.dtype, rounds: bool) -> Gradients:
    x, weight = torch.randn(30, 24).to(dtype), torch.randn(16, 24).to(dtype)
    bias, norm = torch.randn(16), torch.randn(24)
    inputs = ProjectionInputs(x, weight, bias, "layer", norm, norm, 1e-5, True, 1e-12)
    found = project_forward(inputs)
    upstream = ProjectionUpstream(torch.randn(30, 16).to(dtype))
    return project_backward(inputs, found, upstream, ProjectionWanted(*[True] * 5), rounds)


CASES: list[Case] = [
    softmax, softmax_of_own_transpose, sigmoid, cached_sigmoid, cached_sigmoid_of_own_transpose,
    project,
]  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", CASES)
def test_gradients_that_are_not_rounded_round_to_those_that_are(
    case: Case, dtype: torch.dtype
) -> None:
    """Catches a float32 gradient that was rounded on its way, or a second rounding."""
    torch.manual_seed(0)
    rounded = case(dtype, True)
    torch.manual_seed(0)
    for one, wide in zip(rounded, case(dtype, False), strict=True):
        assert (one is None) == (wide is None)
        if one is None or wide is None:
            continue
        if one.dim() == 2:
            assert (one.dtype, wide.dtype) == (dtype, torch.float32)
            assert not torch.equal(wide, wide.to(dtype).float())
        assert torch.equal(one, wide.to(one.dtype))


def test_what_a_sigmoid_caches_must_fit_and_have_targets() -> None:
    inputs = matrix(torch.bfloat16)
    both = 90 * 24
    assert kept_size.sigmoid_similarity(4 * both, inputs) == both
    assert kept_size.sigmoid_similarity(4 * both - 1, inputs) == 0
    assert kept_size.sigmoid_similarity(ROOMY, inputs._replace(y=None)) == 40 * 24
    assert kept_size.sigmoid_similarity(ROOMY, inputs._replace(target=None)) == 0


def test_the_backend_imports_triton_with_its_first_call() -> None:
    """Catches an import of Triton, which takes seconds, by `import mmcore`."""
    code = "import mmcore.backends.triton.kept_size, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gradients_that_are_not_wanted_are_none() -> None:
    inputs = matrix(torch.float32)._replace(row_bias=torch.randn(40))
    found = softmax_forward(inputs, 0)
    upstream = SoftmaxUpstream(*(torch.ones_like(part) for part in found[:4]))
    wanted = SoftmaxWanted(False, True, False, row_bias=True)
    gradients = softmax_backward(inputs, found, upstream, wanted, True)
    there: list[Tensor | None] = list(gradients)
    assert [each is not None for each in there] == list(wanted)
