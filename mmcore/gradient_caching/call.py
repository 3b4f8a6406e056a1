"""One call of a tower: a forward by chunks without graphs, and in the backward one with graphs."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmcore.gradient_caching import synchronisation
from mmcore.gradient_caching.chunks import Arguments, Chunk, Outputs, Tower, chunks_of, joined
from mmcore.gradient_caching.surroundings import (
    RandomStates,
    Surroundings,
    devices_of,
    unchanged_random_states,
)
from mmcore.gradient_caching.synchronisation import refusing_unknown
from mmcore.gradient_caching.towers import Parts, Snapshot, Watch, owner_of

Gradients = Sequence[Tensor | None]

# Calls whose graphs are alive, by the wrapper that exchanges their gradients.
_calls: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[Call]] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


class Call:
    """What a backward needs to compute a forward again. It holds no tensor of the arguments."""

    def __init__(self, tower: Tower, parts: Parts, arguments: Arguments, rows: int) -> None:
        self.tower, self.parts, self.arguments = tower, parts, arguments
        self.number = next(_numbers)
        self.wrappers = synchronisation.wrappers_of(parts.modules)
        synchronisation.refuse_inside_of_wrapper(self.wrappers)
        synchronisation.refuse_static_graph(self.wrappers)
        count = max(1, math.ceil(arguments.rows / rows))
        count = synchronisation.agreed_count(count, self.wrappers)
        self.chunks = chunks_of(arguments.rows, count)
        self.synchronising = {w for w in self.wrappers if synchronisation.synchronises(w)}
        self.snapshot = Snapshot(parts)
        self.node: weakref.ref[Any] | None = None  # of autograd
        self.task = -1  # the backward that computed it again
        self.is_deferred = False

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of all rows. Grad mode is off."""
        self.devices = devices_of([*tensors, *self.parts.parameters()])
        self.surroundings = Surroundings.now(self.devices)
        self.states: list[RandomStates] = []
        outputs: list[list[Tensor]] = []
        versions = [tensor._version for tensor in tensors]
        watch = None
        known = nullcontext() if self.parts.is_module else refusing_unknown(self.wrappers)
        with known, synchronisation.recorded(self.wrappers) as used:
            for chunk in self.chunks:
                self.states.append(RandomStates.now(self.devices))
                outputs.append(self._run(tensors, chunk))
                # The first chunk may fill caches, and DDP's first forward copies buffers.
                if watch is not None:
                    watch.check()
                elif len(self.chunks) > 1:
                    watch = Watch(self.parts)
        if versions != [tensor._version for tensor in tensors]:
            raise RuntimeError(
                "the tower changes its inputs in place, so that gradient caching, which runs it "
                "twice, would give other inputs to the second forward: copy them in the tower"
            )
        # A method that stands in for forward, as fully_shard's have them, runs no hook.
        owner = owner_of(self.tower)
        self.used = {w for w in self.wrappers if w in used or w is owner}
        kept = [o for o, chunk in zip(outputs, self.chunks, strict=True) if not chunk.is_stand_in]
        return joined(kept)

    def _run(self, tensors: Sequence[Tensor], chunk: Chunk) -> list[Tensor]:
        """The tower's output for a chunk."""
        pieces = [self.arguments.piece(tensor, i, chunk) for i, tensor in enumerate(tensors)]
        return self._outputs(pieces, chunk)

    def _outputs(self, pieces: Sequence[Tensor], chunk: Chunk) -> list[Tensor]:
        with self.surroundings.restored():
            result = self.arguments.call(self.tower, pieces)
        outputs, found = Outputs.of(result, chunk.stop - chunk.start)
        if not hasattr(self, "outputs"):
            self.outputs = outputs
        elif outputs != self.outputs:
            raise ValueError(
                f"the tower must return the same structure for every chunk, got "
                f"{self.outputs.described()} and then {outputs.described()}"
            )
        return found

    def whole(self, outputs: Sequence[Tensor]) -> Any:
        """The result of the tower for all rows."""
        return self.outputs.whole(outputs)

    def remember(self, node: Any) -> None:
        """Says which node of autograd stands for this call, once the forward has run."""
        self.node = weakref.ref(node)
        for wrapper in self.used:
            _calls.setdefault(wrapper, weakref.WeakSet()).add(self)

    def is_pending(self) -> bool:
        """Whether the backward under way will compute this call again, and has not yet."""
        if self.is_deferred:
            return True
        task = torch._C._current_graph_task_id()
        node = None if self.node is None else self.node()
        if task == -1 or task == self.task or node is None:
            return False
        return bool(torch._C._will_engine_execute_node(node))

    def last_users(self) -> set[nn.Module]:
        """The wrappers that exchange gradients after this call: no other one will use them."""
        return {w for w in self.synchronising if not any(map(self._precedes, _calls.get(w, ())))}

    def _precedes(self, other: Call) -> bool:
        return other is not self and other.is_pending()

    def backward(
        self, tensors: Sequence[Tensor], gradients: Gradients, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Adds to the gradients of the parameters; returns those of the tensors that want one."""
        self.snapshot.check()
        self.task, self.is_deferred = torch._C._current_graph_task_id(), False
        try:
            with unchanged_random_states(self.devices):
                found = self._replay_all(tensors, gradients, wanted)
        except BaseException:
            synchronisation.discard_unreduced(self.wrappers)
            raise
        return [
            self._gradient(i, tensors[i], [pieces[i] for pieces in found]) if wants else None
            for i, wants in enumerate(wanted)
        ]

    def _replay_all(
        self, tensors: Sequence[Tensor], gradients: Gradients, wanted: Sequence[bool]
    ) -> list[list[Tensor | None]]:
        """The gradients of the tensors of every chunk. The last one exchanges gradients."""
        found, exchanging = [], self.last_users()
        for number, chunk in enumerate(self.chunks):
            is_last = number == len(self.chunks) - 1
            self.states[number].restore()
            watch = Watch(self.parts) if number == 0 else None
            wrappers = exchanging if is_last else set()
            with synchronisation.synchronising_only(wrappers, self.wrappers):
                found.append(self._replay(tensors, chunk, gradients, wanted))
            if watch is not None:
                watch.check()
        return found

    def _replay(
        self, tensors: Sequence[Tensor], chunk: Chunk, gradients: Gradients, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Forward and backward of one chunk; the gradients of its tensors."""
        pieces = [
            self.arguments.piece(tensor.detach(), i, chunk).requires_grad_(wants)
            for i, (tensor, wants) in enumerate(zip(tensors, wanted, strict=True))
        ]
        with torch.enable_grad():
            outputs = self._outputs(pieces, chunk)
        # Without any gradient zeros go back: DDP waits for every parameter.
        has_none = all(gradient is None for gradient in gradients)
        roots, of_roots = [], []
        for output, gradient in zip(outputs, gradients, strict=True):
            if output.requires_grad and (gradient is not None or has_none):
                roots.append(output)
                of_roots.append(_part(gradient, output, chunk))
        return _back_propagated(roots, of_roots, pieces)

    def _gradient(self, number: int, tensor: Tensor, pieces: Gradients) -> Tensor | None:
        """The gradient of one of the tensors, from those of its chunks."""
        kept = [(p, c) for p, c in zip(pieces, self.chunks, strict=True) if not c.is_stand_in]
        known = [piece for piece, _ in kept if piece is not None]
        if not known or not self.arguments.has_rows[number]:
            return torch.stack(known).sum(0) if known else None
        whole = torch.zeros_like(tensor)
        for piece, chunk in kept:
            if piece is not None:
                whole[chunk.start : chunk.stop] = piece
        return whole


def _part(gradient: Tensor | None, output: Tensor, chunk: Chunk) -> Tensor:
    """The gradient of a chunk's output."""
    if gradient is None or chunk.is_stand_in:
        return torch.zeros_like(output)
    return gradient[chunk.start : chunk.stop]


def _back_propagated(
    outputs: list[Tensor], gradients: list[Tensor], pieces: list[Tensor]
) -> list[Tensor | None]:
    leaves = [piece for piece in pieces if piece.requires_grad]
    if not outputs:
        return [None] * len(pieces)
    if torch.autograd._is_checkpoint_valid():
        torch.autograd.backward(outputs, gradients)
        return [piece.grad for piece in pieces]
    # torch.autograd.grad, or backward(inputs=…): no other gradient may be added to.
    found = iter(torch.autograd.grad(outputs, leaves, gradients, allow_unused=True))
    return [next(found) if piece.requires_grad else None for piece in pieces]
