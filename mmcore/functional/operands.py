"""Under autocast, operands of different dtypes are brought to one, before they are checked.

Without autocast, or where one of them is float64, which autocast never touches, they stay as they
are, and the checks refuse them. Gradients come back in the dtype of each operand.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from mmcore.ops.precision import current_autocast

ROUNDED = {torch.float32, torch.bfloat16, torch.float16}


def multiplied(*operands: Tensor) -> tuple[Tensor, ...]:
    """In autocast's dtype, as a matrix product takes them."""
    dtype = _autocast_of_mixed(operands)
    return operands if dtype is None else tuple(each.to(dtype) for each in operands)


def promoted(*operands: Tensor) -> tuple[Tensor, ...]:
    """In the widest of their dtypes, for sums that autocast leaves in float32."""
    if _autocast_of_mixed(operands) is None:
        return operands
    widest = reduce(torch.promote_types, [each.dtype for each in operands])
    return tuple(each.to(widest) for each in operands)


def projected(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The weight in the dtype of `x` where that is autocast's; otherwise as `promoted`.

    A norm reads `x` before a product does, and would miss the digits that are rounded away.
    """
    dtype = _autocast_of_mixed((x, weight))
    if dtype is None:
        return x, weight
    return (x, weight.to(dtype)) if dtype == x.dtype else promoted(x, weight)


def as_parameter(value: Tensor, x: Tensor) -> Tensor:
    """A vector beside `x`: in float32 where it is 16 bits that are not those of `x`."""
    return value if _autocast_of_mixed((x, value)) is None else value.float()


def _autocast_of_mixed(operands: tuple[Tensor, ...]) -> torch.dtype | None:
    """Autocast's dtype; None where it is off or has nothing to do."""
    first = getattr(operands[0], "dtype", None)
    for each in operands:
        if getattr(each, "dtype", None) is not first:
            break
    else:
        return None
    if not {getattr(each, "dtype", None) for each in operands} <= ROUNDED:
        return None
    return current_autocast(operands[0])
