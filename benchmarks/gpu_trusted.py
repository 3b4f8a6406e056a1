"""Values that nobody is timed on unless he meets them: the plain formulas in float32.

Objectives are summed over chunks of rows that are computed anew for the backward, so that no N×M
matrix is ever whole; everything else about them is as a textbook has it.
"""

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from cases import Case
from inputs import Mode
from measure import Function, call
from providers import eager_function

# 512 MiB of float32 logits.
NUMBERS_PER_CHUNK = 2**27
# Relative, in the Euclidean norm. bfloat16 logits of scale 100 alone cost a few per cent; a lost
# direction or a wrong factor costs half or more.
VALUE_TOLERANCE = 0.03
GRADIENT_TOLERANCE = {"bfloat16": 0.2, "float32": 0.05}

Results = tuple[torch.Tensor, tuple[torch.Tensor, ...]]


def trusted_results(
    case: Case, inputs: Mapping[str, torch.Tensor], upstream: torch.Tensor | None, mode: Mode
) -> Results:
    """Value and gradients of the same numbers in float32."""
    wide = {name: each.detach().float().requires_grad_() for name, each in inputs.items()}
    function: Function = eager_function(case)
    if case.op in CHUNK_LOSSES:
        function = partial(loss_in_chunks, case)
    return call(function, wide, None if upstream is None else upstream.float(), mode)


def disagreement(results: Results, trusted: Results, case: Case) -> str | None:
    """Why results are wrong; None where value and the gradients of matrices are near enough."""
    pairs = [("value", results[0], trusted[0], VALUE_TOLERANCE)]
    for result, reference in zip(results[1], trusted[1], strict=True):
        if reference.ndim > 1:
            shape = "×".join(map(str, reference.shape))
            name, tolerance = f"gradient of {shape}", GRADIENT_TOLERANCE[case.dtype]
            pairs.append((name, result, reference, tolerance))
    for name, result, reference, tolerance in pairs:
        error = float((result.detach().float() - reference).norm() / reference.norm())
        if not error <= tolerance:  # NaN as well
            return f"wrong: {name} is {error:.2g} of it away from the plain formula in float32"
    return None


def loss_in_chunks(case: Case, **inputs: torch.Tensor) -> torch.Tensor:
    """The loss as a sum over chunks of rows."""
    rows = case.rows
    size = max(1, NUMBERS_PER_CHUNK // rows)
    total = inputs["x"].new_zeros(())
    for first in range(0, rows, size):
        chunk = torch.arange(first, min(first + size, rows), device=total.device)
        function = partial(CHUNK_LOSSES[case.op], case, chunk)
        part = checkpoint(function, **inputs, use_reentrant=False, preserve_rng_state=False)
        total = total + part
    return total / rows


def clip_chunk(
    case: Case, chunk: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of some rows and of as many columns."""
    of_rows = F.cross_entropy(scale * x[chunk] @ y.T, chunk, reduction="sum")
    of_columns = F.cross_entropy(scale * y[chunk] @ x.T, chunk, reduction="sum")
    return (of_rows + of_columns) / 2


def siglip_chunk(
    case: Case,
    chunk: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """softplus of the logits, with their sign turned for pairs."""
    logits = scale * x[chunk] @ y.T + bias
    is_pair = chunk[:, None] == torch.arange(case.rows, device=x.device)
    return F.softplus(torch.where(is_pair, -logits, logits)).sum()


def nt_xent_chunk(case: Case, chunk: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of some rows without themselves."""
    other_view = (chunk + case.rows // 2) % case.rows
    return F.cross_entropy(logits_of_others(case, chunk, x), other_view, reduction="sum")


def sup_con_chunk(case: Case, chunk: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Log-sum-exp of some rows without themselves, less the mean of their positives."""
    logits = logits_of_others(case, chunk, x)
    label = torch.arange(case.rows, device=x.device) // case.rows_per_class
    is_positive = (label[chunk][:, None] == label) & logits.isfinite()
    positives = torch.where(is_positive, logits, 0.0).sum(1) / (case.rows_per_class - 1)
    return (logits.logsumexp(1) - positives).sum()


def logits_of_others(case: Case, chunk: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Logits of some rows with all, −∞ with themselves."""
    is_self = chunk[:, None] == torch.arange(case.rows, device=x.device)
    return (case.scale * x[chunk] @ x.T).masked_fill(is_self, -torch.inf)


CHUNK_LOSSES = {
    "clip": clip_chunk,
    "siglip": siglip_chunk,
    "nt_xent": nt_xent_chunk,
    "sup_con": sup_con_chunk,
}
