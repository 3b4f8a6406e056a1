"""Means of two sides and products of their columns, over pieces of rows.

Each piece is centred on its own mean, and the products of two sets of rows are those of each set
and of the difference of their means (Chan, Golub and LeVeque, 1983). So one pass over the rows is
enough, and a mean far from 0 costs no digits.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Moments:
    """Float64 sums; a product of columns is divided by the number of rows when it is asked for."""

    def __init__(self, sides: tuple[str, ...], centre: bool) -> None:
        """`sides`: which products are wanted, of "xx", "xy" and "yy"."""
        self.centre = centre
        self.count = 0
        self._means: tuple[Tensor, ...] = ()
        self._products: dict[str, Tensor] = {}
        self._sides = sides

    def add(self, *piece: Tensor) -> None:
        """A piece of `x` and a piece of `y`, float64, at least one row."""
        rows, before = piece[0].shape[0], self.count
        self.count += rows
        means = [side.mean(0) * self.centre for side in piece]
        self._means = self._means or tuple(torch.zeros_like(mean) for mean in means)
        gaps = [mean - old for mean, old in zip(means, self._means, strict=True)]
        centred = [
            side - mean if self.centre else side for side, mean in zip(piece, means, strict=True)
        ]
        for name in self._sides:
            left, right = ("xy".index(side) for side in name)
            product = centred[left].T @ centred[right]
            if self.centre and before:
                product.addr_(gaps[left], gaps[right], alpha=before * rows / self.count)
            if name in self._products:
                product += self._products[name]
            self._products[name] = product
        for mean, gap in zip(self._means, gaps, strict=True):
            mean += gap * (rows / self.count)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Of `x` and of `y`, over all rows; zeros without centring."""
        x_mean, y_mean = self._means
        return x_mean, y_mean

    def product(self, name: str) -> Tensor:
        """The covariance "xx", "xy" or "yy", divided by N; second moments without centring."""
        product = self._products[name] / self.count
        if not bool(product.isfinite().all()):
            raise ValueError(
                "x and y must have products of columns that float64 holds, got numbers above 1e150"
            )
        return product


def moments_of(
    pairs: Iterable[tuple[Tensor, Tensor]], sides: tuple[str, ...], centre: bool
) -> Moments:
    """Over all pieces; refuses fewer rows than a covariance needs."""
    moments = Moments(sides, centre)
    for x, y in pairs:
        moments.add(x, y)
    least = 2 if centre else 1
    if moments.count < least:
        reason = "s to be centred" if centre else ""
        raise ValueError(f"x and y must have at least {least} row{reason}, got {moments.count}")
    return moments
