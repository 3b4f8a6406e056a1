"""Maps from paired rows: ridge, orthogonal Procrustes, canonical correlations.

All three are functions of the covariances of both sides, which one pass over the rows adds up.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.translation.maps import KINDS, LinearMap
from mmcore.translation.moments import Moments, moments_of
from mmcore.translation.rows import Rows, pairs

# What a kind needs of the covariances.
PRODUCTS = {"ridge": ("xx", "xy"), "procrustes": ("xy",), "cca": ("xx", "xy", "yy")}
# Directions with less of the largest one's variance, all columns scaled to the same, are rounding.
LEAST_VARIANCE = 1e-10
LEAST_CORRELATION = 1e-8  # and of what is left, less correlation


def fit_map(
    x: Rows | Iterable[Rows],
    y: Rows | Iterable[Rows],
    kind: str = "ridge",
    *,
    ridge: float = 1e-2,
    components: int | None = None,
    centre: bool = True,
) -> LinearMap:
    """A linear map from the space of `x` to that of `y`, or of both to a shared one, from pairs.

    Equivalent, with x and y centred, S = xᵀx/N, T = yᵀy/N, C = xᵀy/N and r(S) = ridge·tr(S)/D, to

    - "ridge": ``torch.linalg.solve(S + r(S)·I, C)``, the W that minimises
      ‖x·W − y‖² + N·r(S)·‖W‖²: scikit-learn's ``Ridge(alpha=N·r(S))``;
    - "procrustes": ``U @ Vh`` for ``U, _, Vh = torch.linalg.svd(C, full_matrices=False)``, the
      orthogonal W that minimises ‖x·W − y‖²; with orthonormal rows or columns where D is not E,
      and then it maximises tr(yᵀ·x·W). scipy.linalg.orthogonal_procrustes, centred. Directions
      beyond the rank of C are turned somewhere: the data do not say where;
    - "cca": ``A = S̃ @ U``, ``B = T̃ @ V`` and the correlations s, for
      ``U, s, Vᵀ = svd(S̃ @ C @ T̃)``, S̃ = (S + r(S)·I)^(−½), T̃ = (T + r(T)·I)^(−½): the
      directions of both sides that correlate most, each uncorrelated with the others.

    Args:
        x: (N, D), any floating-point dtype: a tensor, a NumPy array (a mapped file too) or any
            with `__dlpack__`, or an iterable of such pieces of rows, which is read once.
        y: (N, E), in the form of `x`: row i of both is of the same thing. E need not be D, nor the
            dtype that of `x`.
        kind: "ridge", "procrustes" or "cca".
        ridge: at least 0, the penalty of "ridge" and "cca", relative to the mean variance of a
            column, so that it means the same for features of any scale; for "cca" on each side by
            itself. "procrustes" has none. With 0, directions of less than 1e-10 of the largest
            variance, all columns scaled to the same variance, are left out: collinear columns
            and fewer rows than columns are no error.
        components: how many for "cca", at most as many as have a correlation above 1e-8; None for
            all of these. The other kinds have none.
        centre: whether the means are taken off, and come back as part of the map.

    Returns:
        A `LinearMap`, whose weights are float64, on the device of `x`. The sign of a component is
        that which makes the largest weight of its column on the side of `x` positive. A side of
        "ridge" that does not vary gives weights of 0: every row is mapped to the mean of `y`.

    Raises:
        TypeError, ValueError: shapes, rows or devices do not fit together, there are fewer than 2
            rows (1 without `centre`), a number is NaN or inf (the message names the row), an
            option is out of range, or "procrustes" and "cca" find nothing that both sides share.

    Memory:
        O((D + E)²) in float64, and 16 MiB for the rows under way.

    Reference:
        Schönemann, A Generalized Solution of the Orthogonal Procrustes Problem, 1966,
        https://doi.org/10.1007/BF02289451; Hotelling, Relations Between Two Sets of Variates, 1936,
        https://doi.org/10.1093/biomet/28.3-4.321, and Vinod, Canonical Ridge, 1976,
        https://doi.org/10.1016/0304-4076(76)90010-5

    Example:
        >>> import torch, mmcore
        >>> x = torch.randn(100, 8, dtype=torch.float64)
        >>> y = x @ torch.randn(8, 5, dtype=torch.float64) + 3
        >>> found = mmcore.translation.fit_map(x, y, ridge=0)
        >>> found
        LinearMap('ridge', 8 → 5)
        >>> torch.allclose(found.apply(x), y)
        True
    """
    check.check_choice("kind", kind, KINDS)
    ridge = check.check_not_negative("ridge", ridge)
    centre = check.check_flag("centre", centre)
    if components is not None and kind != "cca":
        raise ValueError(f'components must be None for kind "{kind}", got {components}')
    with torch.no_grad():
        moments = moments_of(pairs(x, y), PRODUCTS[kind], centre)
        if kind == "ridge":
            return _ridge(moments, ridge)
        if kind == "procrustes":
            return _procrustes(moments)
        return _cca(moments, ridge, components)


def _ridge(moments: Moments, ridge: float) -> LinearMap:
    scale, system, least = _scaled(moments.product("xx"), ridge)
    wanted = moments.product("xy") / scale[:, None]
    if least > LEAST_VARIANCE * len(scale):  # the largest eigenvalue is at most the trace
        weight = torch.cholesky_solve(wanted, torch.linalg.cholesky(system))
    else:
        root = _inverse_root(system)
        weight = root @ (root.T @ wanted)
    return LinearMap("ridge", *moments.means, weight / scale[:, None])


def _procrustes(moments: Moments) -> LinearMap:
    product = moments.product("xy")
    if not bool(product.any()):
        raise ValueError(
            "x and y must vary together for a Procrustes map, got a covariance of 0 in all columns"
        )
    left, _, right = torch.linalg.svd(product, full_matrices=False)
    return LinearMap("procrustes", *moments.means, left @ right)


def _cca(moments: Moments, ridge: float, components: int | None) -> LinearMap:
    roots = []
    for name in ("xx", "yy"):
        scale, system, _ = _scaled(moments.product(name), ridge)
        roots.append(_inverse_root(system) / scale[:, None])
    whitened = roots[0].T @ moments.product("xy") @ roots[1]
    left, correlations, right = torch.linalg.svd(whitened, full_matrices=False)
    most = int((correlations > LEAST_CORRELATION).sum())
    if most == 0:
        raise ValueError("x and y must vary together for CCA, got no correlation above 1e-8")
    kept = most
    if components is not None:
        kept = check.as_integer("components", components)
        if not 1 <= kept <= most:
            raise ValueError(
                f"components must be from 1 to {most}, as many as have a correlation above 1e-8, "
                f"got {kept}"
            )
    weights = roots[0] @ left[:, :kept], roots[1] @ right[:kept].T
    largest = weights[0].abs().argmax(0)
    sign = weights[0].gather(0, largest[None]).sign()
    x_weight, y_weight = (weight * sign for weight in weights)
    # Of rows without noise the singular values are 1 but for rounding.
    return LinearMap(
        "cca", *moments.means, x_weight, y_weight, correlations[:kept].clamp(max=1).contiguous()
    )


def _scaled(covariance: Tensor, ridge: float) -> tuple[Tensor, Tensor, float]:
    """S + r·I scaled to a diagonal of 1, so that no column is lost to rounding for its unit's sake.

    Also the roots of the diagonal that it had, and what its eigenvalues are not below.
    """
    diagonal = covariance.diagonal()
    penalty = ridge * diagonal.mean()
    penalised = diagonal + penalty
    scale = torch.where(penalised > 0, penalised, 1).sqrt()
    system = covariance / scale / scale[:, None]
    system = system.diagonal_scatter(penalised / scale.square())
    return scale, system, float((penalty / scale.square()).min())


def _inverse_root(system: Tensor) -> Tensor:
    """P of P·Pᵀ = S⁻¹, a column for each direction that rounding has not made."""
    variance, direction = torch.linalg.eigh(system)
    is_kept = (variance > LEAST_VARIANCE * variance[-1]) & (variance > 0)
    root: Tensor = direction[:, is_kept] / variance[is_kept].sqrt()
    return root
