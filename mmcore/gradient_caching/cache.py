"""The public calls: `cached`, and `caching` with its `Cache`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmcore.functional.options import check_count
from mmcore.gradient_caching.call import Call, Gradients
from mmcore.gradient_caching.chunks import Arguments, Tower
from mmcore.gradient_caching.towers import Parts, refuse_batch_norm
from mmcore.tracing import not_compiled

DEFAULT_ROWS = 64


class Replay(torch.autograd.Function):
    """The node of a call: forward without a graph, and in the backward forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, cache: Cache | None, anchor: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.call, ctx.cache = call, cache
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        outputs = call.forward(tensors)
        ctx.mark_non_differentiable(*(o for o in outputs if not o.is_floating_point()))
        call.remember(ctx)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "what gradient caching computes cannot be differentiated a second time: call the "
                "tower itself where create_graph=True is needed"
            )
        call, cache, tensors = ctx.call, ctx.cache, ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        if cache is not None and cache.is_collecting and not any(wanted):
            cache.defer(call, tensors, gradients)
            found: list[Tensor | None] = [None] * len(tensors)
        else:
            found = call.backward(tensors, gradients, wanted)
        return None, None, None, *found


@not_compiled
def chunked(
    tower: Tower, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, cache: Cache | None
) -> Any:
    """What the tower returns for all rows, with one node of autograd for it."""
    parts = Parts.of(tower)
    refuse_batch_norm(parts)
    arguments, tensors = Arguments.of(args, kwargs)
    call = Call(tower, parts, arguments, rows)
    # Only a tensor that needs a gradient gives the node one: it stands for the parameters.
    anchor = torch.empty(0, requires_grad=parts.needs_gradients)
    return call.whole(Replay.apply(call, cache, anchor, *tensors))


def cached_call(
    tower: Tower,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rows: int = DEFAULT_ROWS,
    cache: Cache | None = None,
) -> Any:
    """``tower(*args, **kwargs)``, computed in chunks where gradients are recorded."""
    if not callable(tower):
        raise TypeError(f"tower must be a module or a function, got {type(tower).__name__}")
    rows = check_count("rows", rows, sys.maxsize)
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return tower(*args, **kwargs)
    return chunked(tower, args, kwargs, rows, cache)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """A tuple holds positional arguments, a dictionary those by name; all else is one argument."""
    if isinstance(inputs, Mapping):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def cached(tower: Tower, inputs: Any, rows: int = DEFAULT_ROWS) -> Any:
    """``tower(inputs)`` for a batch that does not fit into the tower's memory; exact gradients.

    The forward runs over chunks of `rows` rows and records no graph. The result is one node of
    autograd: compute any loss of it and call ``loss.backward()``. The node's backward runs the
    tower over each chunk again, now with a graph, and back-propagates the chunk's part of the
    gradient (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    RepL4NLP 2021). The chunks see the same random numbers, autocast and mmcore backend again.

    Equivalent to::

        torch.cat([tower(chunk) for chunk in inputs.tensor_split(math.ceil(len(inputs) / rows))])

    whose graphs would be in memory all at once. docs/gradient-caching.md has the details, among
    them DDP and FSDP2: gradients are exchanged once, with the last chunk.

    Args:
        tower: a module, a method of one, or a function that refers to modules: row i of its outputs
            depends on row i of its inputs alone.
        inputs: a tensor; a tuple of positional arguments; or a dictionary of arguments by name.
            They may be nested. Every tensor has the rows of the batch in its first dimension;
            tensors of no dimension, and what is no tensor, go to every chunk as they are.
        rows: the most rows of a chunk. Chunks differ by one row at most.

    Returns:
        What the tower returns, a tensor or tensors in a structure, for all rows. Without grad mode
        it is ``tower(inputs)`` itself. Inputs that require a gradient get theirs.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; tensors of `inputs` differ in their
            rows; an output has no row for each row; batch normalisation uses the batch's mean.
        RuntimeError: the tower changes inputs or buffers in its forward; parameters or modes were
            changed before the backward; DistributedDataParallel is around it and not inside.
        NotImplementedError: with ``create_graph=True``.

    ``torch.autograd.grad`` and ``backward(inputs=…)`` reach `inputs`, and no parameters.

    Memory: inputs, outputs and their gradients for all rows, and the graph of one chunk. Random
    states take 5 KB a chunk.

    Example:
        >>> import torch, mmcore
        >>> tower = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU())
        >>> images, texts = torch.randn(256, 8), torch.randn(256, 8)
        >>> x, y = (mmcore.cached(tower, rows, rows=64) for rows in (images, texts))
        >>> mmcore.functional.clip_loss(x, y, 10.0).backward()
        >>> tower[0].weight.grad.shape
        torch.Size([32, 8])
    """
    args, kwargs = _arguments(inputs)
    return cached_call(tower, args, kwargs, rows)


class Cache:
    """What `caching` gives: ``cache(tower, inputs)`` and ``cache.backward(loss)``."""

    def __init__(self, rows: int) -> None:
        self.rows, self.is_open, self.is_collecting = rows, True, False
        self._deferred: list[tuple[Call, tuple[Tensor, ...], Gradients]] = []

    def __call__(self, tower: Tower, inputs: Any) -> Any:
        """As ``mmcore.cached(tower, inputs)``."""
        if not self.is_open:
            raise RuntimeError(
                "cache was called after its block, `with mmcore.caching() as cache:`"
            )
        args, kwargs = _arguments(inputs)
        return cached_call(tower, args, kwargs, self.rows, self)

    @not_compiled
    def backward(self, loss: Tensor | Sequence[Tensor], *, retain_graph: bool = False) -> None:
        """``loss.backward()``, and then the backward of the towers, chunk by chunk.

        Towers whose inputs require gradients go first, inside of ``loss.backward()``.
        """
        self.is_collecting = True
        try:
            torch.autograd.backward(loss, retain_graph=retain_graph)
            self.is_collecting = False
            # In the order of the calls, which is the same in every process.
            self._deferred.sort(key=lambda each: each[0].number)
            while self._deferred:
                call, tensors, gradients = self._deferred.pop(0)
                call.backward(tensors, gradients, [False] * len(tensors))
        finally:
            self.is_collecting = False
            for call, *_ in self._deferred:
                call.is_deferred = False
            self._deferred.clear()

    def defer(self, call: Call, tensors: tuple[Tensor, ...], gradients: Gradients) -> None:
        """Keeps what `call` needs until the backward of the loss is done."""
        call.is_deferred = True
        self._deferred.append((call, tensors, gradients))


@contextmanager
def caching(rows: int = DEFAULT_ROWS) -> Iterator[Cache]:
    """Gradient caching in two calls: ``cache(tower, inputs)`` is `mmcore.cached` with these `rows`,
    and ``cache.backward(loss)`` takes the place of ``loss.backward()``.

    The towers' second forward begins when the backward of the loss has ended: the loss's graph is
    gone by then, and no backward runs inside of another. With ``loss.backward()`` the gradients are
    the same.

    Args:
        rows: the most rows of a chunk.

    Raises:
        TypeError, ValueError: `rows` is no integer from 1 on. The calls raise what `mmcore.cached`
            raises; a call after the block is a RuntimeError.

    Example:
        >>> import torch, mmcore
        >>> image_tower, text_tower = torch.nn.Linear(8, 4), torch.nn.Linear(6, 4)
        >>> scaler = torch.amp.GradScaler("cpu")
        >>> with mmcore.caching(rows=16) as cache:
        ...     x = cache(image_tower, torch.randn(64, 8))
        ...     y = cache(text_tower, torch.randn(64, 6))
        ...     cache.backward(scaler.scale(mmcore.functional.clip_loss(x, y, 10.0)))
        >>> image_tower.weight.grad.shape
        torch.Size([4, 8])
    """
    cache = Cache(check_count("rows", rows, sys.maxsize))
    try:
        yield cache
    finally:
        cache.is_open = False
