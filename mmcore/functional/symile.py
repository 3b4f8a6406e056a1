"""Symile: what several modalities have in common and no two of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

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
    towers, order = list(features.values()), None
    if ranks is not None:
        of_ranks = _tuples_of_ranks if negatives == "tuples" else _shuffled_of_ranks
        return as_loss(of_ranks(towers, scale, ranks, generator, backend), first)
    if negatives == "shuffled":
        order = _orders(towers, first.shape[0], generator)
    inputs = ProductInputs(features=towers, scale=scale, order=order, dtype=first.dtype)
    row_lse, row_pos, _ = product_op.call(inputs, backend=backend)
    loss = row_lse - row_pos if order is None else F.softplus(row_lse - row_pos)
    return as_loss(loss.mean(), first)


def _orders(towers: list[Tensor], rows: int, generator: torch.Generator | None) -> Tensor:
    """(M, N): a permutation for each modality."""
    device = towers[0].device
    if generator is None:  # were it named, torch.compile would make the size a constant
        return torch.stack([torch.randperm(rows, device=device) for _ in towers])
    return torch.stack([torch.randperm(rows, device=device, generator=generator) for _ in towers])


def _tuples_of_ranks(
    towers: list[Tensor], scale: Tensor, ranks: Ranks, generator: torch.Generator | None,
    backend: str | None,
) -> Tensor:  # fmt: skip
    """One matrix after the other: the rows of a modality, and the products of all others."""
    losses = []
    for m, tower in enumerate(towers):
        found = softmax_similarity(
            tower, _product(towers, m), scale, columns=False, process_group=ranks, backend=backend
        )
        losses.append(mean_of_rows(found.row_lse - found.row_pos, ranks))
    return torch.stack(losses).mean()


def _shuffled_of_ranks(
    towers: list[Tensor], scale: Tensor, ranks: Ranks, generator: torch.Generator | None,
    backend: str | None,
) -> Tensor:  # fmt: skip
    """The same over rows that ranks fetch in the order of the shuffle, as many as they have."""
    (rows,) = ranks.rows("symile_loss", first=towers[0])
    numbers = rows.numbers(towers[0])
    order = ranks.of_first(_orders(towers, rows.gathered(numbers).shape[0], generator))[:, numbers]
    mixed = [rows.at(tower, order[m]) for m, tower in enumerate(towers)]
    positive = scale * reduce(torch.mul, [tower.double() for tower in towers]).sum(1)
    losses = []
    for m, tower in enumerate(mixed):
        # The sum leaves row i's own tuple out, to make room for the positive.
        row_lse = softmax_similarity(
            tower, _product(mixed, m), scale, denominator="negatives", columns=False,
            process_group=ranks, backend=backend,
        ).row_lse  # fmt: skip
        row_pos = rows.at(positive[:, None], order[m])[:, 0]
        losses.append(mean_of_rows(F.softplus(row_lse - row_pos), ranks))
    return torch.stack(losses).mean()


def _product(towers: list[Tensor], left_out: int) -> Tensor:
    """Of all modalities but one, rounded once."""
    wide = torch.float64 if towers[0].dtype == torch.float64 else torch.float32
    factors = [tower.to(wide) for m, tower in enumerate(towers) if m != left_out]
    return torch.stack(factors).prod(0).to(towers[0].dtype)
