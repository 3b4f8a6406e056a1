"""Retrieval among characters never seen in training, from every modality to every other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from batches import Batches, Modalities
from model import GlyphModel

DIRECTIONS = (
    ("image", "name"),
    ("name", "image"),
    ("outline", "name"),
    ("name", "outline"),
    ("image", "outline"),
    ("outline", "image"),
)


def embed_test_characters(model: GlyphModel, batches: Batches) -> Modalities:
    """The embeddings of the test characters; leaves the model in training mode."""
    model.eval()
    with torch.no_grad():
        embeddings = model(batches.test())
    model.train()
    return embeddings


def ranks(queries: Tensor, candidates: Tensor) -> Tensor:
    """The rank, from 1, of candidate i for query i; of equal scores the lower index comes first."""
    similarity = queries @ candidates.T
    own = similarity.diagonal().unsqueeze(1)
    # "Not lower or equal" rather than "higher": NaN then ranks last, not first.
    is_higher = ~(similarity <= own)
    is_earlier_tie = (similarity == own).tril(-1)
    return 1 + (is_higher | is_earlier_tie).sum(1)


def retrieval(embeddings: Modalities) -> dict[str, dict[str, float]]:
    """Recall at 1, 5 and 10 (shares of 1) and the median rank, for each of DIRECTIONS."""
    rows = embeddings._asdict()
    metrics = {}
    for query, candidate in DIRECTIONS:
        rank = ranks(rows[query], rows[candidate]).double()
        recalls = {f"recall_at_{k}": float((rank <= k).double().mean()) for k in (1, 5, 10)}
        metrics[f"{query} to {candidate}"] = {**recalls, "median_rank": float(rank.quantile(0.5))}
    return metrics


def table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The metrics as text, a row for each direction."""
    lines = [f"{'':<18}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'median rank':>14}"]
    for direction, row in metrics.items():
        recalls = "".join(f"{row[f'recall_at_{k}']:>8.1%}" for k in (1, 5, 10))
        lines.append(f"{direction:<18}{recalls}{row['median_rank']:>14g}")
    return "\n".join(lines)
