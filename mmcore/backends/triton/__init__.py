"""The Triton backend: one module for each family of ops. Importing this imports no Triton."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mmcore.backends.inputs import (
    NegativesInputs,
    PrefixInputs,
    PrefixStatistics,
    PrefixUpstream,
    PrefixWanted,
    Projected,
    ProjectionInputs,
    ProjectionWanted,
    SigmoidSums,
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
    as_inputs,
)
from mmcore.backends.triton.kept_size import rows_of_exponentials
from mmcore.backends.triton.pair_ids import count_positives
from mmcore.tracing import constant_when_compiled

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Established at import: torch.compile traces `obstacle`, but not the search for a package.
IS_INSTALLED = find_spec("triton") is not None
# Asynchronous copies and bfloat16 products: Ampere and later. AMD's capabilities begin at 9.
LEAST_CAPABILITY = (8, 0)


def obstacle(x: Tensor) -> str | None:
    """Why the Triton kernels cannot serve `x`; None where they can."""
    if x.dtype not in DTYPES:
        name = str(x.dtype).removeprefix("torch.")
        return f"the Triton kernels take float32, bfloat16 and float16, got {name}"
    if not IS_INSTALLED:
        return "the package triton is not installed"
    if x.device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "the tensors are on cpu, where Triton runs only with TRITON_INTERPRET=1"
    if x.device.type != "cuda":
        return f"the tensors are on {x.device.type}, which Triton does not serve"
    capability = _capability(x.device)
    if capability < LEAST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, 8.0 is needed"
    return None


@constant_when_compiled
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


# The rest adapts the families to calls by position, until the ops call families by name.
def _adapted(family: str, adapt: Callable[..., Any]) -> Callable[..., Any]:
    """`adapt` with the family's module, which the first call imports."""

    def launch(*arguments: Any) -> Any:
        module = import_module(f"{__name__}.{family}")
        # Triton launches on torch's current device, which need not be that of the tensors.
        with torch.cuda.device_of(arguments[0]):
            return adapt(module, *arguments)

    return launch


def _softmax_forward(module: Any, *arguments: Any) -> Any:
    return module.forward(SimilarityInputs(*arguments[:15]), arguments[15])


def _softmax_backward(module: Any, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, wanted = SimilarityInputs(*arguments[:15]), arguments[24]
    statistics, upstream = SoftmaxStatistics(*arguments[15:20]), SoftmaxUpstream(*arguments[20:24])
    of_backend = SoftmaxWanted(*wanted[:3], *wanted[4:])
    found = module.backward(inputs, statistics, upstream, of_backend, True)
    gradients = (*found[:3], _bias_gradient(inputs, statistics, upstream), *found[3:])
    return as_inputs(gradients, inputs[:6], wanted)


def _bias_gradient(
    inputs: SimilarityInputs, statistics: SoftmaxStatistics, upstream: SoftmaxUpstream
) -> Tensor:
    """The sum of G: every statistic grows as the bias does, a sum of k positives k times."""
    total = upstream.row_lse.new_zeros(())
    spelled, is_sum = inputs.spelled_out(), inputs.positives == "sum"
    rows = (spelled.target, spelled.row_label, spelled.row_group)
    columns = (None, spelled.col_label, spelled.col_group)
    for lse, pos, grad_lse, grad_pos, own, other in (
        (statistics.row_lse, statistics.row_pos, upstream.row_lse, upstream.row_pos, rows, columns),
        (statistics.col_lse, statistics.col_pos, upstream.col_lse, upstream.col_pos, columns, rows),
    ):
        if lse.numel() == 0:
            continue
        if not is_sum:
            number = (pos > -torch.inf).double()
        elif (count := count_positives(own[1], other[1], own[2], other[2])) is not None:
            number = count.double()
        elif own[0] is not None:
            number = (own[0] != -1).double()
        elif other[0] is not None:
            target = other[0]
            number = torch.zeros_like(grad_pos).index_add_(
                0, target.clamp(min=0), (target >= 0).double()
            )
        else:
            number = torch.zeros_like(grad_pos)
        total = (
            total
            + torch.where(lse > -torch.inf, grad_lse, 0.0).sum()
            + torch.where(number > 0, grad_pos * number, 0.0).sum()
        )
    return total


def _sigmoid_inputs(x: Any, y: Any, scale: Any, bias: Any, *rest: Any) -> SimilarityInputs:
    pairs = dict(zip(SimilarityInputs._fields[6:11], rest, strict=False))
    return SimilarityInputs(x, y, scale, bias, None, None, **pairs, multiplies_bfloat16=rest[5])


def _sigmoid_forward(module: Any, *arguments: Any) -> Any:
    inputs = _sigmoid_inputs(*arguments[:10])
    size = inputs.x.numel() + (0 if inputs.y is None else inputs.y.numel())
    return module.forward(inputs, size if arguments[10] else 0)


def _sigmoid_backward(module: Any, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, wanted = _sigmoid_inputs(*arguments[:10]), SigmoidWanted(*arguments[14])
    sums = SigmoidSums(arguments[12], arguments[13], *arguments[10:12])
    found = module.backward(inputs, sums, SigmoidUpstream(*arguments[12:14]), wanted, True)
    return as_inputs(found, inputs[:4], wanted)


def _negatives(module: Any, *arguments: Any) -> Any:
    inputs = SimilarityInputs(*arguments)
    return module.search(
        NegativesInputs(
            inputs.x, inputs.keys, inputs.row_group, inputs.col_group, inputs.multiplies_bfloat16
        )
    )


def _project_forward(module: Any, *arguments: Any) -> Any:
    return module.forward(ProjectionInputs(*arguments))


def _project_backward(module: Any, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, projected = ProjectionInputs(*arguments[:10]), Projected(*arguments[10:14])
    wanted = ProjectionWanted(*arguments[15])
    found = module.backward(inputs, projected, arguments[14], wanted, True)
    return as_inputs(found, inputs.tensors(), wanted)


def _prefix_forward(module: Any, *arguments: Any) -> Any:
    return module.forward(PrefixInputs(*arguments[:-1]), arguments[-1])


def _prefix_backward(module: Any, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, statistics = PrefixInputs(*arguments[:9]), PrefixStatistics(*arguments[9:14])
    upstream, wanted = PrefixUpstream(*arguments[14:17]), PrefixWanted(*arguments[17])
    found = module.backward(inputs, statistics, upstream, wanted, True)
    return as_inputs(found, (inputs.x, inputs.y, inputs.scale), wanted)


def kept_tiles(
    workspace: int, rows: int, columns: int, is_bfloat16: bool, is_half_enough: bool
) -> int:
    """kept_size.softmax_similarity of these."""
    if not is_bfloat16 or is_half_enough:
        return 0
    return rows_of_exponentials(workspace, rows, columns)


l2_normalize = _adapted("l2_normalize", lambda module, *arguments: module.forward(*arguments))
l2_normalize_backward = _adapted(
    "l2_normalize", lambda module, *arguments: module.backward(*arguments)
)
project = _adapted("project", _project_forward)
project_backward = _adapted("project", _project_backward)
softmax_similarity = _adapted("softmax_similarity", _softmax_forward)
softmax_similarity_backward = _adapted("softmax_similarity", _softmax_backward)
sigmoid_similarity = _adapted("sigmoid_similarity", _sigmoid_forward)
sigmoid_similarity_backward = _adapted("sigmoid_similarity", _sigmoid_backward)
hardest_negatives = _adapted("hardest_negatives", _negatives)
prefix_similarity = _adapted("prefix_similarity", _prefix_forward)
prefix_similarity_backward = _adapted("prefix_similarity", _prefix_backward)
