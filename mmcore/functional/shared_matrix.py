"""A similarity matrix whose rows and columns several processes hold: what they agree on first."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional.ranks import Ranks
from mmcore.ops.softmax_similarity import SimilarityInputs

TENSORS = (
    "x", "y", "scale", "bias", "row_bias", "col_bias", "target", "row_label", "col_label",
    "row_group", "col_group",
)  # fmt: skip


def shared_matrix(
    function: str, inputs: SimilarityInputs, ranks: Ranks, **options: object
) -> tuple[SimilarityInputs, Tensor]:
    """The inputs with the diagonal of all ranks for a target where none was given, and the header.

    Raises ValueError on every rank where the ranks were given what does not go together.
    """
    tensors = {name: getattr(inputs, name) for name in TENSORS}
    sizes = {"rows": inputs.x.shape[0], "columns": inputs.keys.shape[0]}
    is_diagonal = inputs.target is None and inputs.row_label is None
    agreed = ranks.agree(
        function, tensors, sizes=sizes, target=inputs.target, columns="columns",
        has_diagonal=is_diagonal,
        denominator=inputs.denominator, columns_wanted=inputs.has_columns,
        positives=inputs.positives, **options,
    )  # fmt: skip
    if is_diagonal:
        first = agreed[: ranks.rank, 0].sum().to(inputs.x.device)
        target = torch.arange(inputs.x.shape[0], device=inputs.x.device) + first
        inputs = inputs._replace(target=target)
    return inputs, agreed
