"""Symile: what several modalities have in common and no two of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmcore.backends import choose, kept_tiles, selected
from mmcore.backends.workspace import current
from mmcore.functional import arguments as check
from mmcore.functional.precision import autocast_dtype, multiplies_bfloat16
from mmcore.functional.reductions import as_loss
from mmcore.functional.similarity import as_multiplied, needs_backward


def symile_loss(
    features: Mapping[str, Tensor], scale: float | Tensor, *, backend: str | None = None
) -> Tensor:
    """Symile: each modality against the product of all others, row by row.

    Equivalent, without ever storing the (N, N) logits, to the mean over modalities m of ::

        others = torch.stack([z for name, z in features.items() if name != m]).prod(0)
        F.cross_entropy(scale * features[m] @ others.T, torch.arange(N))

    It captures what three modalities have in common and no two of them.

    Args:
        features: the rows of each of at least two modalities by its name, (N, D), of one dtype; row
            i of all is of the same thing.
        scale: a number or a one-element tensor: the inverse temperature.
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `softmax_similarity`, or modalities differ in their rows.

    Memory:
        As `softmax_similarity`, and the product of all modalities but one, (N, D), at a time.

    Reference:
        Saporta et al., Contrasting with Symile: Simple Model-Agnostic Representation Learning for
        Unlimited Modalities, 2024, https://arxiv.org/abs/2411.01053

    Example:
        >>> import torch, mmcore
        >>> features = {m: mmcore.functional.l2_normalize(torch.randn(4, 8)) for m in "abc"}
        >>> mmcore.functional.symile_loss(features, scale=14.0).shape
        torch.Size([])
    """
    check.check_modalities(features)
    check.check_equal_rows(features)
    first_name, first = next(iter(features.items()))
    check.check_rows(f"features[{first_name!r}]", first)
    scale, backend = check.as_scalar("scale", scale, first), selected(backend)
    is_bfloat16 = multiplies_bfloat16(as_multiplied(first[:0], None)[0])
    kept_size = 0
    if needs_backward(*features.values(), scale):
        rows, device = first.shape[0], first.device.type
        kept_size = kept_tiles(
            choose(backend, first), current(device), rows, rows, is_bfloat16, False
        )
    row_lse, row_pos, _ = torch.ops.mmcore.product_similarity(
        list(features.values()), scale, autocast_dtype(first) or first.dtype, is_bfloat16,
        kept_size, backend,
    )  # fmt: skip
    return as_loss((row_lse - row_pos).mean(), first)
