"""Symile: what several modalities have in common and no two of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, mean_of_rows
from mmcore.functional.similarity import softmax_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops import product_similarity as product_op
from mmcore.ops.product_similarity import ProductInputs

NEGATIVES = ("tuples", "shuffled")


@scale_not_temperature
@tells_ranks
def symile_loss(
    features: Mapping[str, Tensor],
    scale: float | Tensor,
    *,
    negatives: str = "tuples",
    generator: torch.Generator | None = None,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Symile: each modality against the product of all others, row by row.

    Equivalent, without ever storing the (N, N) logits, to the mean over modalities m of ::

        others = [z for name, z in features.items() if name != m]
        F.cross_entropy(scale * features[m] @ torch.stack(others).prod(0).T, torch.arange(N))

    There a row's negatives are the other rows' tuples, as they occur. With ``"shuffled"`` negatives
    they are tuples that never occurred, as the paper draws them: the rows of every modality are
    shuffled on their own::

        order = {name: torch.randperm(N) for name in features}
        mixed = [z[order[name]] for name, z in features.items() if name != m]
        logits = scale * features[m][order[m]] @ torch.stack(mixed).prod(0).T
        positive = scale * torch.stack(list(features.values())).prod(0).sum(1)[order[m]]
        F.cross_entropy(torch.where(torch.eye(N) > 0, positive[:, None], logits), torch.arange(N))

    Either way it captures what three modalities have in common and no two of them. Tuples bound
    the information that each modality shares with all others together, and the same inputs give the
    same bits; shuffled rows bound the total correlation, which counts what pairs share as well.

    Args:
        features: the rows of each of at least two modalities by its name, (N, D), of one dtype; row
            i of all is of the same thing.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        negatives: ``"tuples"`` or ``"shuffled"``.
        generator: of the random orders of ``"shuffled"``; default torch's.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `softmax_similarity`, modalities differ in their rows, or
            `negatives` is unknown.

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
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("symile_loss", process_group)
    features = check.check_modalities(features)
    check.check_equal_rows(features)
    first_name, first = next(iter(features.items()))
    if ranks is None:
        check.check_rows(f"features[{first_name!r}]", first)
    check.check_scale("scale", scale)
    check.check_choice("negatives", negatives, NEGATIVES)
    scale = check.as_scalar("scale", scale, first)
    towers, order, rows = list(features.values()), None, first.shape[0]
    if ranks is not None and negatives == "tuples":
        return as_loss(_over_ranks(towers, scale, ranks, backend), first)
    if ranks is not None:
        (sides,) = ranks.rows("symile_loss", first=first)
        towers = [sides.every(z) for z in towers]
        rows = towers[0].shape[0]
    if negatives == "shuffled":
        order = torch.stack([_permutation(rows, first.device, generator) for _ in towers])
        order = order if ranks is None else ranks.of_first(order)
    inputs = ProductInputs(features=towers, scale=scale, order=order, dtype=first.dtype)
    row_lse, row_pos, _ = product_op.call(inputs, backend=backend)
    loss = row_lse - row_pos if order is None else F.softplus(row_lse - row_pos)
    mean = loss.mean() if ranks is None else ranks.computed_by_all(loss.mean())
    return as_loss(mean, first)


def _permutation(rows: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    if generator is None:  # were it named, torch.compile would make the size a constant
        return torch.randperm(rows, device=device)
    return torch.randperm(rows, device=device, generator=generator)


def _over_ranks(towers: list[Tensor], scale: Tensor, ranks: Ranks, backend: str | None) -> Tensor:
    """One matrix after the other: the rows of a modality, and the products of all others."""
    wide = torch.float64 if towers[0].dtype == torch.float64 else torch.float32
    losses = []
    for i, tower in enumerate(towers):
        others = torch.stack([z.to(wide) for k, z in enumerate(towers) if k != i]).prod(0)
        found = softmax_similarity(
            tower, others.to(tower.dtype), scale, columns=False, process_group=ranks,
            backend=backend,
        )  # fmt: skip
        losses.append(mean_of_rows(found.row_lse - found.row_pos, ranks))
    return torch.stack(losses).mean()
