"""Checkpoints: what torch.utils.checkpoint computes again is the same, inside a block or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import mmcore
from mmcore import functional
from mmcore.backends import cpu

pytestmark = pytest.mark.op

Loss = Callable[[Tensor, Tensor], Tensor]
Block = Callable[[], AbstractContextManager[None]]


def distilled(x: Tensor, y: Tensor) -> Tensor:
    return sum(functional.distill_clip_loss(x, y, 9.0, y.detach(), x.detach(), 5.0))


def siglip(x: Tensor, y: Tensor) -> Tensor:
    sums = functional.sigmoid_similarity(x, y, 10.0, -1.0)
    return (sums.total - sums.positive) / len(x)


# Of every family that keeps something, of one that does not, and of one whose results are vectors.
LOSSES: dict[str, Loss] = {
    "softmax_similarity": lambda x, y: functional.clip_loss(functional.l2_normalize(x), y, 10.0),
    "sigmoid_similarity": siglip,
    "prefix_similarity": lambda x, y: functional.matryoshka_loss(x, y, 10.0, [8, 16]),
    "product_similarity": lambda x, y: functional.symile_loss({"a": x, "b": y, "c": x}, 10.0),
    "distillation": distilled,
    "project": lambda x, y: functional.project(x, y, norm="layer").square().sum(),
}
BLOCKS: dict[str, Block] = {
    "no block": lambda: mmcore.backend("auto"),
    "workspace": lambda: mmcore.workspace(0),
    "backend": lambda: mmcore.backend("reference"),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
every_block = pytest.mark.parametrize("block", BLOCKS)
both_kinds = pytest.mark.parametrize("reentrant", [True, False])


def inputs() -> list[Tensor]:
    return [F.normalize(torch.randn(300, 16)).requires_grad_() for _ in range(2)]


def backward(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """As an optimizer finds the gradients: a reentrant checkpoint refuses autograd.grad."""
    for tensor in tensors:
        tensor.grad = None
    loss.backward()
    return [tensor.grad for tensor in tensors if tensor.grad is not None]


def same_bits(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == 2 and all(map(torch.equal, found, expected))


@every_loss
@every_block
@both_kinds
def test_a_backward_outside_of_the_block(name: str, block: str, reentrant: bool) -> None:
    """Catches a CheckpointError because the recomputation, outside, keeps something else."""
    tensors = inputs()
    with BLOCKS[block]():
        expected = backward(LOSSES[name](*tensors), tensors)
        loss = checkpoint(LOSSES[name], *tensors, use_reentrant=reentrant)
    found = backward(loss, tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@every_loss
@every_block
@both_kinds
def test_a_backward_inside_of_the_block_has_the_same_bits(
    name: str, block: str, reentrant: bool
) -> None:
    """Catches a recomputation that a backend other than the block's serves."""
    tensors = inputs()
    with BLOCKS[block](), mmcore.workspace(0):
        expected = backward(LOSSES[name](*tensors), tensors)
        loss = checkpoint(LOSSES[name], *tensors, use_reentrant=reentrant)
        assert same_bits(backward(loss, tensors), expected)


@every_loss
@both_kinds
def test_a_block_inside_of_what_is_checkpointed_has_the_same_bits(
    name: str, reentrant: bool
) -> None:
    """Catches a decorator, the way out that the docstring names, that enters its block once."""
    tensors = inputs()
    with mmcore.backend("reference"):
        expected = backward(LOSSES[name](*tensors), tensors)
    layer = mmcore.backend("reference")(LOSSES[name])
    for _ in range(2):
        loss = checkpoint(layer, *tensors, use_reentrant=reentrant)
        assert same_bits(backward(loss, tensors), expected)


def test_nothing_is_kept_inside_of_a_checkpoint(best: str) -> None:
    """Catches memory that the forward fills and a checkpoint drops; torch's hooks by another
    name.
    """
    sizes: list[int] = []
    original = cpu.kept_size.softmax_similarity

    def measured(*arguments: object) -> int:
        sizes.append(original(*arguments))
        return sizes[-1]

    tensors = inputs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu.kept_size, "softmax_similarity", measured)
        checkpoint(functional.clip_loss, *tensors, 10.0, use_reentrant=False).backward()
        assert sizes == []
        functional.clip_loss(*tensors, 10.0)
    assert sizes[0] > 0
