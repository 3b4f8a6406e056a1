"""Global constants of kernels, which cost next to nothing at a launch."""

from __future__ import annotations

import triton.language as tl


class Constant(tl.constexpr):  # type: ignore[misc]
    """A global constant of kernels.

    Triton compares the constants of a kernel, at every launch, with copies that it made when it
    compiled the kernel. Between two of its own `tl.constexpr` that takes a microsecond.
    """

    def __deepcopy__(self, memo: object) -> Constant:
        return self

    def __ne__(self, other: object) -> bool:
        return self is not other and bool(super().__ne__(other))

    __hash__ = tl.constexpr.__hash__
