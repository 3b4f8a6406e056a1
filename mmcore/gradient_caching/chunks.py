"""Chunks: the arguments of a tower cut by rows, and its outputs joined again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, keystr, tree_flatten_with_path, tree_unflatten

Tower = Callable[..., Any]
# What a tower may return beside tensors; it has to be the same for every chunk.
PLAIN = (type(None), bool, int, float, str)


class Chunk(NamedTuple):
    """Rows `start` to `stop`. `is_stand_in`: they belong to another chunk, and count only there.

    Every process runs equally many chunks. One with fewer rows than chunks runs its first row
    again, and drops what comes out.
    """

    start: int
    stop: int
    is_stand_in: bool = False


def chunks_of(rows: int, count: int) -> list[Chunk]:
    """`count` chunks whose sizes differ by 1 at most, as `torch.tensor_split` cuts them."""
    size, larger = divmod(rows, count)
    stops = [(i + 1) * size + min(i + 1, larger) for i in range(count)]
    found = [Chunk(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]
    return [
        Chunk(0, 1, is_stand_in=True) if rows and chunk.start == chunk.stop else chunk
        for chunk in found
    ]


class Arguments(NamedTuple):
    """The arguments of a call without their tensors, which autograd keeps."""

    leaves: tuple[object, ...]  # in the order of the structure; None in place of a tensor
    places: tuple[int, ...]  # of the tensors
    has_rows: tuple[bool, ...]  # by tensor: a number, a tensor of no dimension, is not cut
    structure: TreeSpec
    rows: int

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Arguments, list[Tensor]]:
        """The arguments, and their tensors, which must have the same number of rows."""
        found, structure = tree_flatten_with_path((args, dict(kwargs)))
        leaves = [leaf for _, leaf in found]
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[i] for i in places]
        names = [_name(found[i][0]) for i in places]
        rows = _rows(tensors, names)
        for i in places:
            leaves[i] = None
        has_rows = tuple(tensor.ndim > 0 for tensor in tensors)
        return cls(tuple(leaves), tuple(places), has_rows, structure, rows), tensors

    def piece(self, tensor: Tensor, number: int, chunk: Chunk) -> Tensor:
        """The rows of a chunk of one of the tensors."""
        return tensor[chunk.start : chunk.stop] if self.has_rows[number] else tensor

    def call(self, tower: Tower, tensors: Sequence[Tensor]) -> Any:
        """What the tower returns for these tensors."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self.structure)
        return tower(*args, **kwargs)


def _name(path: tuple[Any, ...]) -> str:
    """As the caller wrote it: inputs[1]['mask'] for a tensor of the second argument."""
    return f"inputs{keystr(path[1:])}"


def _rows(tensors: list[Tensor], names: list[str]) -> int:
    sizes = {n: len(t) for n, t in zip(names, tensors, strict=True) if t.ndim > 0}
    if not sizes:
        raise ValueError(
            "inputs must have at least one tensor with rows, which are what chunks consist of: "
            f"got {len(tensors)} tensors of no dimension"
        )
    first, rows = next(iter(sizes.items()))
    for name, size in sizes.items():
        if size != rows:
            raise ValueError(
                f"{name} must have as many rows as {first}, {rows}, got {size}: what is the same "
                f"for all rows goes to the tower by functools.partial, or expanded to {rows} rows"
            )
    return rows


class Outputs(NamedTuple):
    """What a tower returned, without its tensors."""

    leaves: tuple[object, ...]  # None in place of a tensor
    places: tuple[int, ...]
    structure: TreeSpec

    @classmethod
    def of(cls, result: Any, rows: int) -> tuple[Outputs, list[Tensor]]:
        """The result for a chunk of `rows` rows, and its tensors."""
        found, structure = tree_flatten_with_path(result)
        leaves, places, tensors = [leaf for _, leaf in found], [], []
        for i, (path, leaf) in enumerate(found):
            if isinstance(leaf, Tensor):
                if leaf.ndim == 0 or len(leaf) != rows:
                    raise ValueError(
                        f"the tower's output{keystr(path)} must have a row for each row of its "
                        f"inputs, {rows} in this chunk, got shape {tuple(leaf.shape)}: what is no "
                        f"result of a row, such as a learned scale, is computed outside of it"
                    )
                places.append(i)
                tensors.append(leaf)
                leaves[i] = None
            elif not isinstance(leaf, PLAIN):
                raise TypeError(
                    f"the tower's output{keystr(path)} must be a tensor, a number, a string or "
                    f"None, in tuples, lists, dictionaries or what torch.utils._pytree knows, got "
                    f"{type(leaf).__name__}"
                )
        return cls(tuple(leaves), tuple(places), structure), tensors

    def whole(self, tensors: Sequence[object]) -> Any:
        """The result, with these tensors in it."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, self.structure)

    def described(self) -> str:
        """For an error: (tensor, 3), and so on."""
        return str(self.whole([_Word("tensor")] * len(self.places)))


class _Word(str):
    """A word without quotes."""

    __repr__ = str.__str__


def joined(outputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The tensors of all chunks, each joined by rows."""
    return [torch.cat(pieces) for pieces in zip(*outputs, strict=True)]
