"""Objectives that compare every row with every other: CLIP, SigLIP, NT-Xent, SupCon."""

from dataclasses import dataclass
from typing import ClassVar

import torch

import usual
from inputs import (
    DEFAULT_DEVICE,
    DTYPES,
    Mode,
    random_directions,
    require_gradients,
    resembling,
    seeded,
)

ACCUMULATOR_ITEMSIZE = torch.float32.itemsize


@dataclass(frozen=True)
class SimilarityCase:
    """`rows` unit vectors with `width` columns, of which some belong together."""

    rows: int
    width: int
    dtype: str = "float32"
    scale: float = 1.0
    # How much rows resemble each other that belong together.
    pair_cosine: float = usual.PAIR_COSINE
    is_bound_by_arithmetic: ClassVar[bool] = True
    # Rows come in groups of as many.
    rows_divisor: ClassVar[int] = 1
    # Matrices of features: x and y, or x alone.
    operands: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.rows % self.rows_divisor:
            raise ValueError(
                f"rows must be a multiple of {self.rows_divisor} for {type(self).__name__}, "
                f"got {self.rows}"
            )

    @property
    def shape(self) -> dict[str, int | float]:
        """The sizes as a result line names them."""
        shape = {"rows": self.rows, "width": self.width, "scale": self.scale}
        if self.pair_cosine != usual.PAIR_COSINE:
            shape["pair_cosine"] = self.pair_cosine
        return shape

    def make_output_gradient(self, seed: int, device: str = DEFAULT_DEVICE) -> torch.Tensor | None:
        """The loss is a scalar: its gradient is 1."""
        return None

    def byte_count(self, mode: Mode) -> int:
        """What cannot be avoided: features are read once, their gradients written once."""
        features = self.operands * self.rows * self.width * DTYPES[self.dtype].itemsize
        return features if mode == "forward" else 2 * features

    def accumulator_bytes(self) -> int:
        """Float32 sums of the features' gradients, where those are of fewer bits; else 0."""
        if DTYPES[self.dtype].itemsize >= ACCUMULATOR_ITEMSIZE:
            return 0
        return self.operands * self.rows * self.width * ACCUMULATOR_ITEMSIZE

    def make_pair(self, seed: int, device: str = DEFAULT_DEVICE) -> dict[str, torch.Tensor]:
        """x, y: (N, D) unit rows of which xᵢ and yᵢ resemble each other."""
        generator = seeded(seed, device)
        x = random_directions(self.rows, self.width, generator)
        y = resembling(x, self.pair_cosine, generator)
        return {"x": x.to(DTYPES[self.dtype]), "y": y.to(DTYPES[self.dtype])}


@dataclass(frozen=True)
class ClipCase(SimilarityCase):
    """Symmetric CLIP loss of `rows` pairs."""

    scale: float = usual.SCALES["clip"]
    op: ClassVar[str] = "clip"

    def make_inputs(self, seed: int, device: str = DEFAULT_DEVICE) -> dict[str, torch.Tensor]:
        """x, y: (N, D); scale: 0-D float32."""
        scale = torch.tensor(self.scale, device=device)
        return require_gradients({**self.make_pair(seed, device), "scale": scale})

    def flop_count(self, mode: Mode) -> int:
        """2·N²·D for S = x·yᵀ; backward: S once more, G·y and Gᵀ·x, so 8·N²·D together.

        That is the least without storing S. exp, log and sums are not counted.
        """
        product = 2 * self.rows**2 * self.width
        return product if mode == "forward" else 4 * product


@dataclass(frozen=True)
class SiglipCase(SimilarityCase):
    """SigLIP loss of `rows` pairs; scale and bias are those that training starts from."""

    scale: float = usual.SCALES["siglip"]
    bias: ClassVar[float] = -10.0
    op: ClassVar[str] = "siglip"

    def make_inputs(self, seed: int, device: str = DEFAULT_DEVICE) -> dict[str, torch.Tensor]:
        """x, y: (N, D); scale, bias: 0-D float32."""
        scalars = {
            "scale": torch.tensor(self.scale, device=device),
            "bias": torch.tensor(self.bias, device=device),
        }
        return require_gradients({**self.make_pair(seed, device), **scalars})

    def flop_count(self, mode: Mode) -> int:
        """2·N²·D for S = x·yᵀ, G·y and Gᵀ·x each: 6·N²·D together.

        Every entry of G depends on its own logit alone, so one pass over S is enough.
        """
        product = 2 * self.rows**2 * self.width
        return product if mode == "forward" else 3 * product


@dataclass(frozen=True)
class ViewsCase(SimilarityCase):
    """Views compared with each other and not with themselves; x is on both sides."""

    operands: ClassVar[int] = 1

    def flop_count(self, mode: Mode) -> int:
        """N²·D for half of the symmetric S; backward: that once more, and 2·N²·D for (G + Gᵀ)·x.

        That is the least without storing S, 4·N²·D together.
        """
        half_product = self.rows**2 * self.width
        return half_product if mode == "forward" else 4 * half_product


@dataclass(frozen=True)
class NTXentCase(ViewsCase):
    """NT-Xent of SimCLR over `rows` = 2·B views: rows i and i + B are views of one thing."""

    scale: float = usual.SCALES["nt_xent"]
    op: ClassVar[str] = "nt_xent"
    rows_divisor: ClassVar[int] = 2

    def make_inputs(self, seed: int, device: str = DEFAULT_DEVICE) -> dict[str, torch.Tensor]:
        """x: (N, D)."""
        generator = seeded(seed, device)
        first = random_directions(self.rows // 2, self.width, generator)
        second = resembling(first, self.pair_cosine, generator)
        return require_gradients({"x": torch.cat([first, second]).to(DTYPES[self.dtype])})


@dataclass(frozen=True)
class SupConCase(ViewsCase):
    """SupCon over `rows` views, four of each class: rows 4·c to 4·c + 3 are of class c."""

    scale: float = usual.SCALES["sup_con"]
    op: ClassVar[str] = "sup_con"
    rows_per_class: ClassVar[int] = 4
    rows_divisor: ClassVar[int] = rows_per_class

    def make_inputs(self, seed: int, device: str = DEFAULT_DEVICE) -> dict[str, torch.Tensor]:
        """x: (N, D)."""
        generator = seeded(seed, device)
        classes = random_directions(self.rows // self.rows_per_class, self.width, generator)
        centers = classes.repeat_interleave(self.rows_per_class, dim=0)
        # Two rows at this cosine to their class are at its square to each other.
        x = resembling(centers, self.pair_cosine**0.5, generator)
        return require_gradients({"x": x.to(DTYPES[self.dtype])})
