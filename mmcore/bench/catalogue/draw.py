"""Random inputs of objectives: features of some size and kind, labels, a scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# How far the rows of another side lie from those of the first, by the kind of the draw: of the
# second side of two, and of each side of several. `pairs` have a cosine of about 0.2.
NOISE = {
    "random": (2.0, 2.0),
    "duplicates": (2.0, 2.0),
    "near": (0.05, 0.3),
    "pairs": (4.9, 4.9),
}


@dataclass
class Draw:
    """Random numbers of one seed; every method draws new ones.

    `kind` says how rows resemble each other: "random"; "duplicates", where some rows occur twice;
    "near", where positives are almost equal; "pairs", as at the beginning of training. Features
    that are not of unit length know "constant" columns and columns whose means are "far" from 0,
    too. Integers are drawn on the default device, as all tensors are.
    """

    rows: int = 60
    width: int = 24
    scale: float = 14.0
    kind: str = "random"
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        device = torch.get_default_device()
        self.generator = torch.Generator(device).manual_seed(self.seed)

    def normal(self, *size: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(size, generator=self.generator).to(self.dtype)

    def uniform(self, *size: int) -> Tensor:
        """Numbers between 0 and 1."""
        return torch.rand(size, generator=self.generator).to(self.dtype)

    def integers(self, low: int, high: int, count: int | None = None) -> Tensor:
        """As many integers in [low, high) as there are rows, or `count`, int64."""
        size = (self.rows if count is None else count,)
        return torch.randint(low, high, size, generator=self.generator)

    def order(self) -> Tensor:
        """The rows in a random order."""
        return torch.randperm(self.rows, generator=self.generator)

    def number(self, value: float) -> Tensor:
        """A 0-D tensor; float32 where the features are narrower."""
        return torch.tensor(value, dtype=torch.promote_types(self.dtype, torch.float32))

    def scalar_scale(self) -> Tensor:
        """The inverse temperature, 0-D."""
        return self.number(self.scale)

    def unit(self, rows: int | None = None) -> Tensor:
        """Rows of unit length in any direction."""
        return F.normalize(self.normal(self.rows if rows is None else rows, self.width), dim=1)

    def sides(self, count: int = 2) -> list[Tensor]:
        """Unit rows of each side, of which row i resembles row i of the first one."""
        first, half = self.unit(), self.rows // 2
        found, noise = [first], NOISE[self.kind][count > 2]
        if self.kind == "duplicates":
            first[half:] = first[: self.rows - half].clone()
        for i in range(1, count):
            side = F.normalize(first + noise * self.unit(), dim=1)
            if self.kind == "duplicates":
                begin = half + i * (self.rows - half) // (i + 2)
                side[begin:] = side[: self.rows - begin].clone()
            found.append(side)
        return found

    def columns(self) -> list[Tensor]:
        """Two sides of rows of any length, whose columns have means and spreads of their own."""
        shift, spread = self.normal(self.width), self.uniform(self.width) + 0.5
        x, half = self.normal(self.rows, self.width), self.rows // 2
        y = x + (0.01 if self.kind == "near" else 1.0) * self.normal(self.rows, self.width)
        if self.kind == "random":
            y[:, ::3] *= -1
        if self.kind == "duplicates":
            for side in (x, y):
                side[half:] = side[: self.rows - half].clone()
        if self.kind == "constant":
            x[:, 3], y[:, 7] = 0, 1
        if self.kind == "far":
            shift = 100 * shift
        return [x * spread + shift, y * spread + shift]


def classes_of_four(count: int) -> Tensor:
    """Labels of four rows each."""
    return torch.arange(count) // 4
