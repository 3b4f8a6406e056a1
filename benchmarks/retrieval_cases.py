"""Searches that are timed, and who computes them.

Every provider takes NumPy's or torch's view of the same float32 rows of unit length. faiss's wheel
has an OpenBLAS that does not know new processors: retrieval.py names it one with AVX-512 where
there is one, because the wheel would take slow kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import retrieval

Search = Callable[[Tensor], object]
# Where torch's logits of more rows would not fit beside the gallery.
TORCH_LOGITS = 2**29


@dataclass(frozen=True)
class SearchCase:
    """The k best of a gallery for each query."""

    queries: int
    gallery: int
    k: int
    width: int = 512
    dtype: str = "float32"
    op: str = "topk"

    @property
    def shape(self) -> dict[str, int | float]:
        """As a result line has it."""
        return {"queries": self.queries, "gallery": self.gallery, "width": self.width, "k": self.k}

    @property
    def title(self) -> str:
        """For example `topk 16 x 500,000, k = 10`."""
        return f"{self.op} {self.queries:,} x {self.gallery:,}, k = {self.k}"

    def rows(self, count: int, seed: int) -> Tensor:
        """Rows of unit length."""
        draw = torch.Generator().manual_seed(seed)
        return F.normalize(torch.randn(count, self.width, generator=draw), dim=1)


def with_first_pass(first_pass: str) -> Callable[[SearchCase, Tensor], Search]:
    """Candidates by the given numbers, or by bytes that each search makes anew."""

    def prepared(case: SearchCase, gallery: Tensor) -> Search:
        return lambda queries: retrieval.topk(queries, gallery, case.k, first_pass=first_pass)

    return prepared


def prepared_gallery(case: SearchCase, gallery: Tensor) -> Search:
    """Bytes that were made once."""
    prepared = retrieval.Gallery(gallery)
    return lambda queries: retrieval.topk(queries, prepared, case.k)


def torch_float32(case: SearchCase, gallery: Tensor) -> Search:
    """A product and `torch.topk`, some queries at a time."""
    rows = max(1, TORCH_LOGITS // gallery.shape[0])
    return lambda queries: [(piece @ gallery.T).topk(case.k) for piece in queries.split(rows)]


def torch_bfloat16(case: SearchCase, gallery: Tensor) -> Search:
    """The same of rounded rows: other items than asked for, on a unit that is faster."""
    rounded = gallery.bfloat16()
    rows = max(1, TORCH_LOGITS // gallery.shape[0])
    return lambda queries: [
        (piece.bfloat16() @ rounded.T).topk(case.k) for piece in queries.split(rows)
    ]


def faiss_flat(case: SearchCase, gallery: Tensor) -> Search:
    """faiss's exact index."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(case.width)
    index.add(gallery.numpy())
    return lambda queries: index.search(queries.numpy(), case.k)


SEARCHERS: dict[str, Callable[[SearchCase, Tensor], Search]] = {
    "mmcore-cpu": with_first_pass("auto"),
    "mmcore-cpu-full": with_first_pass("full"),
    "mmcore-cpu-prepared": prepared_gallery,
    "torch-eager": torch_float32,
    "torch-bfloat16": torch_bfloat16,
    "faiss": faiss_flat,
}
CASES = (
    SearchCase(1, 500_000, 10),
    SearchCase(16, 500_000, 10),
    SearchCase(1000, 500_000, 10),
    SearchCase(1000, 50_000, 10),
    SearchCase(1000, 50_000, 100),
    SearchCase(10_000, 20_000, 10),
)
