"""A fitted map: its weights, what it does to rows, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.retrieval import arrays
from mmcore.translation import files
from mmcore.translation.rows import Rows, rows_at_a_time

KINDS = ("ridge", "procrustes", "cca")
SIDES = ("x", "y")


@dataclass(frozen=True, eq=False, repr=False)
class LinearMap:
    """What `fit_map` has found: a linear map with its means.

    Equivalent, for rows of the space of `x`, to ::

        (x - x_mean) @ x_weight + y_mean      # "ridge" and "procrustes": into the space of y
        (x - x_mean) @ x_weight               # "cca": into the shared space
        (y - y_mean) @ y_weight               # "cca": the other side, into the same space

    Attributes:
        kind: "ridge", "procrustes" or "cca".
        x_mean: (D,) float64, zeros where the map was fitted with ``centre=False``.
        y_mean: (E,) float64, likewise.
        x_weight: (D, E) float64; (D, K) for "cca", a column for each component.
        y_weight: (E, K) float64 for "cca", else None.
        correlations: (K,) float64 for "cca", in descending order, else None.

    Memory:
        The weights. `apply` takes O(D + E) more for each of a few thousand rows.

    Example:
        >>> import torch, mmcore
        >>> x = torch.randn(50, 8)
        >>> turn = torch.linalg.qr(torch.randn(8, 8)).Q
        >>> found = mmcore.translation.fit_map(x, x @ turn, "procrustes")
        >>> torch.allclose(found.apply(x), x @ turn, atol=1e-5)
        True
        >>> torch.allclose(found.inverse().apply(x @ turn), x, atol=1e-5)
        True
    """

    kind: str
    x_mean: Tensor
    y_mean: Tensor
    x_weight: Tensor
    y_weight: Tensor | None = None
    correlations: Tensor | None = None

    def apply(self, x: Rows, *, side: str = "x", power: float = 0.0) -> Any:
        """Maps rows: into the space of `y`, or for "cca" into the space that both sides share.

        Args:
            x: (N, D), a tensor, a NumPy array or any with `__dlpack__`, any floating-point dtype;
                (N, E) for `side` "y".
            side: "y" maps rows of `y` instead, which only "cca" does: the others leave `y` as it
                is.
            power: for "cca", each component is multiplied by its correlation to this power, on
                whichever side. 0 leaves all components with a variance of 1; 1 makes products of
                rows weigh what both sides have in common, which retrieval prefers.

        Returns:
            (N, E), or (N, K) for "cca": an array of the library of `x`, in its dtype and on its
            device. Computed in float32, or in float64 for float64; differentiable for tensors. NaN
            and inf in a row stay in that row.

        Raises:
            TypeError, ValueError: `x` is no matrix of so many columns, or the map has no such side
                or no correlations.
        """
        mean, weight, shift = self._side(side, power)
        # Not `as_rows`, which takes the graph off.
        rows = x if isinstance(x, Tensor) else arrays.as_tensor("x", x)
        check.check_matrix("x", rows)
        check.check_columns("x", rows, weight.shape[0], f"side {side!r} of the map")
        return arrays.like(x, _affine(rows, mean, weight, shift))

    def inverse(self) -> LinearMap:
        """The map back from the space of `y`: for "procrustes" the transpose.

        It undoes `apply` where E ≥ D. Where E < D, `apply` has dropped dimensions, and the inverse
        leads to the nearest row that `apply` maps to the given one.

        Raises:
            ValueError: for "ridge" and "cca". Ridge shrinks what it is unsure of, and inverting
                that would magnify it: fit the other direction, ``fit_map(y, x)``. CCA maps both
                sides to the shared space.
        """
        if self.kind != "procrustes":
            cure = {
                "ridge": "fit the other direction, fit_map(y, x)",
                "cca": 'map both sides into the shared space, apply(y, side="y")',
            }[self.kind]
            raise ValueError(f'a map of kind "{self.kind}" has no inverse: {cure}')
        return LinearMap(self.kind, self.y_mean, self.x_mean, self.x_weight.T.contiguous())

    def save(self, path: str | Path) -> None:
        """Writes the map to a file, whole or not at all: NumPy's .npz, with a digest.

        Raises:
            OSError: the file cannot be written.
        """
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        files.write(Path(path), self.kind, arrays)

    @classmethod
    def load(cls, path: str | Path) -> LinearMap:
        """The map that `save` wrote, the same bits, in the memory of the host.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, or something else than such a file.
        """
        kind, arrays = files.read(Path(path))
        return cls(kind, **arrays)

    def __repr__(self) -> str:
        shape = " → ".join(str(size) for size in self.x_weight.shape)
        return f"LinearMap({self.kind!r}, {shape})"

    def _side(self, side: str, power: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """The mean, the weight and what is added, of one side."""
        check.check_choice("side", side, SIDES)
        power = check.as_number("power", power)
        if self.correlations is None:
            if side != "x":
                raise ValueError(f'side must be "x" for a map of kind "{self.kind}", got "{side}"')
            if power != 0:
                raise ValueError(
                    f'power must be 0 for a map of kind "{self.kind}", which has no correlations, '
                    f"got {power}"
                )
            return self.x_mean, self.x_weight, self.y_mean
        assert self.y_weight is not None
        mean = self.x_mean if side == "x" else self.y_mean
        weight = self.x_weight if side == "x" else self.y_weight
        return mean, weight * self.correlations**power, None


def _affine(rows: Tensor, mean: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
    """(rows − mean)·weight + shift, some rows at a time."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    mean, weight = (each.to(rows.device, dtype) for each in (mean, weight))
    shift = None if shift is None else shift.to(rows.device, dtype)
    found = rows.new_empty(rows.shape[0], weight.shape[1])
    step = rows_at_a_time(sum(weight.shape))
    with torch.autocast(rows.device.type, enabled=False):
        for start in range(0, rows.shape[0], step):
            mapped = (rows[start : start + step].to(dtype).contiguous() - mean) @ weight
            found[start : start + step] = mapped if shift is None else mapped + shift
    return found
