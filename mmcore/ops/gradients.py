"""Gradients of an op's inputs, of which not all are wanted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def fake_gradients(likes: Sequence[Tensor | None], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """What a backward's fake returns: each as dense as its input is large, empty if not wanted."""
    first = likes[0]
    assert first is not None
    return tuple(
        first.new_empty(0) if like is None or not is_wanted else like.new_empty(like.shape)
        for like, is_wanted in zip(likes, wanted, strict=True)
    )


def only_wanted(gradients: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """As autograd takes them: None where a gradient is not wanted."""
    return tuple(
        gradient if is_wanted else None
        for gradient, is_wanted in zip(gradients, wanted, strict=True)
    )
