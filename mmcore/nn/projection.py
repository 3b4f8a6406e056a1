"""Normalisation and projection as modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmcore import functional
from mmcore.functional.arguments import as_integer, check_positive
from mmcore.functional.projection import NORMS
from mmcore.tracing import refuse_script


class L2Normalize(nn.Module):
    """Scales every row (the last dimension) to unit length: `mmcore.functional.l2_normalize`.

    Args:
        eps: rows shorter than this are divided by it instead.

    Example:
        >>> import torch, mmcore
        >>> mmcore.nn.L2Normalize()(torch.tensor([[0.0, 2.0]]))
        tensor([[0., 1.]])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(self, eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = check_positive("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return functional.l2_normalize(x, eps=self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class ProjectionHead(nn.Module):
    """Projects an encoder's output into the shared space: `mmcore.functional.project`.

    Equivalent to ``nn.Sequential(nn.LayerNorm(K), nn.Linear(K, D), L2Normalize())`` in one kernel
    forward and one backward, with the same initialisation.

    Args:
        in_features: K, the encoder's width.
        out_features: D, the width of the shared space.
        norm: ``"layer"``, ``"rms"`` or None: what happens to the input first.
        bias: whether the linear map has a bias.
        normalize: whether the output's rows are scaled to unit length.
        norm_eps: added to the variance.
        eps: rows of the output shorter than this are divided by it instead.
        device, dtype: of the parameters.

    Example:
        >>> import torch, mmcore
        >>> head = mmcore.nn.ProjectionHead(768, 512)
        >>> head(torch.randn(4, 768)).shape
        torch.Size([4, 512])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        norm: str | None = "layer",
        bias: bool = True,
        normalize: bool = True,
        norm_eps: float = 1e-5,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _width("in_features", in_features)
        self.out_features = _width("out_features", out_features)
        if norm not in NORMS:
            raise ValueError(f"norm must be 'layer', 'rms' or None, got {norm!r}")
        self.norm, self.normalize = norm, normalize
        self.norm_eps = check_positive("norm_eps", norm_eps)
        self.eps = check_positive("eps", eps)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight = parameter(self.out_features, self.in_features)
        self.bias = parameter(self.out_features) if bias else None
        self.norm_weight = parameter(self.in_features) if norm is not None else None
        self.norm_bias = parameter(self.in_features) if norm == "layer" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As ``nn.LayerNorm`` and ``nn.Linear`` initialise theirs."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)
        if self.norm_weight is not None:
            nn.init.ones_(self.norm_weight)
        if self.norm_bias is not None:
            nn.init.zeros_(self.norm_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., D)."""
        return functional.project(
            x,
            self.weight,
            self.bias,
            norm=self.norm,
            norm_weight=self.norm_weight,
            norm_bias=self.norm_bias,
            norm_eps=self.norm_eps,
            normalize=self.normalize,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"norm={self.norm!r}, bias={self.bias is not None}, normalize={self.normalize}"
        )


def _width(name: str, value: object) -> int:
    expected = "an integer of at least 1"
    width = as_integer(name, value, expected)
    if width < 1:
        raise ValueError(f"{name} must be {expected}, got {width}")
    return width
