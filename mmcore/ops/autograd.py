"""Gradients of ops: an autograd Function around each, which torch.func and torch.compile see.

Forward mode (`torch.func.jvp`) and second derivatives are errors, and never silent zeros. Second
derivatives through the scalar bias of a softmax alone exist, and are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.ops.layout import flat, nested


def differentiable(
    forward: Callable[..., Any], *, save: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`forward`, an op or a function that calls one, with a gradient.

    `save` and `backward` are the two halves of the gradient as `torch.autograd.Function` takes
    them. The Function is outside the op, because an op's own autograd fills in the defaults of its
    schema at every call, in quadratic time. `torch.func.vmap` calls it for one row after the other.
    """

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            return _below_autograd(forward, inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor | None) -> Any:
            return backward(ctx, *upstream)

        @staticmethod
        def vmap(info: Any, in_dims: Sequence[Any], *values: Any) -> tuple[Any, Any]:
            return one_by_one(Call.apply, info.batch_size, in_dims, values)

    class EagerCall(torch.autograd.Function):
        """As `Call`, at less cost, and not for `torch.func`."""

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = _below_autograd(forward, inputs)
            save(ctx, inputs, output)
            return output

        backward = Call.backward

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return _compiled(Call, forward, inputs)
        kind = Call if torch._C._are_functorch_transforms_active() else EagerCall
        return _recorded(forward, inputs) if torch._C._is_tracing() else kind.apply(*inputs)

    return call


def once_differentiable(op: Callable[..., Any]) -> Callable[..., list[Tensor]]:
    """A backward op whose own derivative is an error and not a silent zero; its results flat.

    The Function is in use only where the backward is itself recorded: for a second derivative, and
    under `torch.func`.
    """

    class Gradients(torch.autograd.Function):
        @staticmethod
        def forward(sizes: Sequence[int | None], *values: Any) -> tuple[Tensor, ...]:
            return tuple(flat(_below_autograd(op, nested(values, sizes))))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor | None) -> Any:
            raise NotImplementedError(f"{op.__name__} cannot be differentiated a second time")

        @staticmethod
        def vmap(info: Any, in_dims: Sequence[Any], *inputs: Any) -> tuple[Any, Any]:
            return one_by_one(Gradients.apply, info.batch_size, in_dims, inputs)

    def call(*arguments: Any) -> list[Tensor]:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return flat(_below_autograd(op, arguments))
        sizes = tuple(
            len(value) if isinstance(value, list | tuple) else None for value in arguments
        )
        return list(Gradients.apply(sizes, *flat(arguments)))

    return call


def _compiled(
    function: type[torch.autograd.Function], forward: Callable[..., Any], inputs: Sequence[Any]
) -> Any:
    """As ``torch.compile`` traces it: a Function only for a gradient, and of no equal inputs."""
    return function.apply(*_distinct(inputs)) if wants_gradient(*inputs) else forward(*inputs)


def _recorded(forward: Callable[..., Any], inputs: Sequence[Any]) -> Any:
    """As ``torch.jit.trace`` can save it: the op, without a gradient, and no Function."""
    lists = [value for value in inputs if isinstance(value, list)]
    if any(isinstance(value, bool) for value in flat(lists)):
        raise NotImplementedError(
            "torch.jit.trace has no lists of bools, which mmcore::gram takes: export the model "
            "with torch.export.export"
        )
    return _below_autograd(forward, inputs)


def _below_autograd(op: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Calls an op without the op's own autograd, which does nothing but refuse and costs time."""
    if torch.compiler.is_compiling():
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def wants_gradient(*inputs: Any) -> bool:
    """Whether autograd would record a call with these inputs."""
    is_wanted = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
    return torch.is_grad_enabled() and is_wanted


def one_by_one(
    call: Callable[..., Any], count: int, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> tuple[Any, Any]:
    """A rule of `torch.func.vmap`: the results of `count` calls, stacked."""

    def of(i: int) -> list[Any]:
        return [
            value.select(dim, i) if isinstance(value, Tensor) and dim is not None else value
            for value, dim in zip(inputs, in_dims, strict=True)
        ]

    results = [call(*of(i)) for i in range(count)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _distinct(values: Sequence[Any]) -> list[Any]:
    """The values, with a view in place of a tensor that occurs a second time."""
    found: list[Any] = []
    for value in values:
        is_repeated = isinstance(value, Tensor) and any(value is other for other in found)
        found.append(value.view_as(value) if is_repeated else value)
    return found
