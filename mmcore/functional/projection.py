"""From an encoder's output to the shared space: projection and normalisation."""

from __future__ import annotations

from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.ops import l2_normalize as normalize_op
from mmcore.ops import project as project_op
from mmcore.ops.project import ProjectionInputs

NORMS = (None, "layer", "rms")


def l2_normalize(x: Tensor, *, eps: float = 1e-12, backend: str | None = None) -> Tensor:
    """Scales every row (the last dimension) to unit length.

    Equivalent to ``torch.nn.functional.normalize(x, dim=-1, eps=eps)``.

    Args:
        x: (..., D), any floating-point dtype.
        eps: rows shorter than this are divided by it instead; a row of zeros stays zeros, and its
            gradient, that of the output over `eps`, is finite. float16 cannot hold the gradient
            that follows from the default: such rows want 1e-4.
        backend: see `mmcore.backend`.

    Returns:
        (..., D) in the dtype of `x`; computed in float32 (float64 for float64), rounded once.

    Raises:
        TypeError, ValueError: `x` is no floating-point tensor with at least one dimension, or `eps`
            is not above 0.

    Memory:
        The output and N numbers for the backward. It reads the output, which must not be changed in
        place before: put ``ReLU(inplace=False)`` behind it.

    Example:
        >>> import torch, mmcore
        >>> mmcore.functional.l2_normalize(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """
    check.check_tensor("x", x)
    eps = check.check_positive("eps", eps)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have at least 1 column, got shape {tuple(x.shape)}")
    if x.ndim == 2:
        return normalize_op.call(x, eps, backend=backend)
    return normalize_op.call(x.reshape(-1, x.shape[-1]), eps, backend=backend).reshape(x.shape)


def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: str | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 1e-5,
    normalize: bool = True,
    eps: float = 1e-12,
    backend: str | None = None,
) -> Tensor:
    """Projection head: optional input norm, linear map, optional L2 normalisation.

    Equivalent to ::

        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, norm_eps)  # norm="layer"
        x = F.rms_norm(x, x.shape[-1:], norm_weight, norm_eps)               # norm="rms"
        x = F.linear(x, weight, bias)
        x = F.normalize(x, dim=-1, eps=eps)                                  # normalize=True

    Args:
        x: (..., K), any floating-point dtype.
        weight: (D, K), in the dtype of `x`; under autocast of any but float64.
        bias: (D,) or None.
        norm: ``"layer"``, ``"rms"`` or None: what happens to `x` first.
        norm_weight: (K,) or None, the norm's elementwise factor.
        norm_bias: (K,) or None, the norm's elementwise term; RMSNorm has none.
        norm_eps: added to the variance.
        normalize: whether rows of the output are scaled to unit length.
        eps: as in `l2_normalize`.
        backend: see `mmcore.backend`.

    Returns:
        (..., D) in the dtype of `x`, or in autocast's dtype under autocast. Norms, sums of products
        and the bias are float32 (float64 for float64), and the result is rounded once. The operands
        of the products are rounded to bfloat16 where `x` is bfloat16, under autocast to bfloat16,
        and where `torch.get_float32_matmul_precision()` is "medium"; where it is "high", float32
        ones may be split in two bfloat16 numbers each, or on a GPU rounded to TensorFloat-32.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, or an argument of the
            norm was given without a norm that takes it.

    Memory:
        The output, three numbers per row for the backward, and a packed copy of the weight while
        the kernel runs; the normalised `x` is never stored. The backward takes 4 MiB beside its
        gradients and the packed weight, and computes only the gradients that are wanted. Normalised
        rows must not be changed in place before it; with ``normalize=False`` the graph does not
        hold the output, and it may be.

    Example:
        >>> import torch, mmcore
        >>> x, weight = torch.randn(4, 16), torch.randn(8, 16)
        >>> y = mmcore.functional.project(x, weight, norm="layer")
        >>> y.shape, torch.allclose(y.norm(dim=-1), torch.ones(4))
        (torch.Size([4, 8]), True)
    """
    x, weight = operands.projected(x, weight)
    bias, norm_weight, norm_bias = _checked_parameters(
        x, weight, bias, norm, norm_weight, norm_bias
    )
    norm_eps = check.check_positive("norm_eps", norm_eps)
    eps = check.check_positive("eps", eps)
    normalize = check.check_flag("normalize", normalize)
    inputs = ProjectionInputs(
        x=x if x.ndim == 2 else x.reshape(-1, x.shape[-1]), weight=weight, bias=bias,
        norm=norm or "none", norm_weight=norm_weight, norm_bias=norm_bias, norm_eps=norm_eps,
        normalize=normalize, eps=eps,
    )  # fmt: skip
    output = project_op.call(inputs, backend=backend)
    return output if x.ndim == 2 else output.reshape(*x.shape[:-1], weight.shape[0])


def _checked_parameters(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: str | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """`bias`, `norm_weight` and `norm_bias`, of dtypes that go with `x`."""
    check.check_tensor("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have at least 1 column, got shape {tuple(x.shape)}")
    check.check_matrix("weight", weight)
    check.check_rows("weight", weight)
    check.check_columns("weight", weight, x.shape[-1])
    check.check_matches("weight", weight, x)
    bias = check.check_parameter("bias", bias, weight.shape[0], x)
    if norm not in NORMS:
        raise ValueError(f"norm must be 'layer', 'rms' or None, got {norm!r}")
    if norm is None and (norm_weight is not None or norm_bias is not None):
        raise ValueError("norm must be 'layer' or 'rms' where norm_weight or norm_bias is given")
    if norm == "rms" and norm_bias is not None:
        raise ValueError("norm_bias must be None with norm='rms', which has no bias")
    norm_weight = check.check_parameter("norm_weight", norm_weight, x.shape[-1], x)
    norm_bias = check.check_parameter("norm_bias", norm_bias, x.shape[-1], x)
    return bias, norm_weight, norm_bias
