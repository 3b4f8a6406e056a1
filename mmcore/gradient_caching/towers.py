"""What a tower consists of, and which towers cannot be computed in chunks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcore.gradient_caching.chunks import Tower


class Parts(NamedTuple):
    """The modules and tensors that a tower reads."""

    modules: tuple[nn.Module, ...]  # the outermost
    tensors: tuple[Tensor, ...]  # beside those of the modules
    is_known: bool  # False: it may read others

    @classmethod
    def of(cls, tower: Tower) -> Parts:
        """Of a module, a method of one, a partial, or a function that refers to modules."""
        found = list(_parts(tower, set()))
        modules = tuple(part for part in found if isinstance(part, nn.Module))
        tensors = tuple(part for part in found if isinstance(part, Tensor))
        return cls(modules, tensors, bool(found))

    def parameters(self) -> Iterator[Tensor]:
        """All that may need a gradient, once each."""
        yield from {id(p): p for m in self.modules for p in m.parameters()}.values()
        yield from self.tensors

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module, and its name in the tower."""
        for module in self.modules:
            yield from module.named_modules()

    @property
    def needs_gradients(self) -> bool:
        """Whether some parameter does; where the tower is not known, it may."""
        return not self.is_known or any(p.requires_grad for p in self.parameters())


def _parts(value: Any, seen: set[int]) -> Iterator[nn.Module | Tensor]:
    """The modules and tensors in what a function refers to."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module | Tensor):
        yield value
        return
    inner: Iterable[Any] = ()
    if isinstance(value, partial):
        inner = (value.func, *value.args, *value.keywords.values())
    elif inspect.ismethod(value):
        inner = (value.__self__, value.__func__)
    elif inspect.isfunction(value):
        inner = _referred(value)
    elif isinstance(value, list | tuple | dict):
        inner = value.values() if isinstance(value, dict) else value
    elif callable(value) and not isinstance(value, type):
        inner = (*getattr(value, "__dict__", {}).values(), getattr(value, "__wrapped__", None))
    for each in inner:
        yield from _parts(each, seen)


def _referred(function: Any) -> list[Any]:
    """What a function of Python refers to: names around it, its defaults, what it wraps."""
    cells = (cell for cell in function.__closure__ or ())
    around = [cell.cell_contents for cell in cells if _is_set(cell)]
    names = (function.__globals__.get(name) for name in function.__code__.co_names)
    kinds = (nn.Module, Tensor, partial)
    return [
        *around,
        *(value for value in names if isinstance(value, kinds) or inspect.ismethod(value)),
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
    ]


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  an empty cell raises
    except ValueError:
        return False
    return True


def refuse_batch_norm(parts: Parts) -> None:
    """Raises where a result of a row depends on the other rows of its chunk."""
    for name, module in parts.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if module.training or module.running_mean is None:
            where = f"{name!r}, a {type(module).__name__}," if name else type(module).__name__
            raise ValueError(
                f"tower must have no batch normalisation over the rows of the batch, but {where} "
                f"takes mean and variance of the rows that it sees: of a chunk they are others "
                f"than of the batch, and the replay would count every chunk a second time. Call "
                f".eval() of it to use its running statistics, or use LayerNorm or GroupNorm"
            )


class Watch:
    """The buffers of a tower, as they were: a forward that changes one cannot be replayed."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.before = dict(self._buffers())

    def _buffers(self) -> Iterator[tuple[str, tuple[Tensor, int]]]:
        for module in self.parts.modules:
            for name, buffer in module.named_buffers():
                if not buffer.is_inference():
                    yield name, (buffer, buffer._version)

    def check(self) -> None:
        """Raises where a buffer was changed, in place or by another of the same shape."""
        for name, (buffer, version) in self._buffers():
            before, version_before = self.before.get(name, (buffer, version))
            is_same = buffer is before and version == version_before
            if not is_same and buffer.shape == before.shape:
                raise RuntimeError(
                    f"tower changes its buffer {name!r} in its forward, which gradient caching "
                    f"runs twice for every chunk: the second time is not the same as the first. "
                    f"Such modules (batch normalisation, spectral norm, moving averages, queues) "
                    f"belong outside of what is cached, or in .eval()"
                )


class Snapshot:
    """Parameters and modes, as the forward found them: the replay needs the same."""

    def __init__(self, parts: Parts, *, has_fixed_parameters: bool) -> None:
        self.modes = [(module, module.training) for _, module in parts.named_modules()]
        self.versions: list[tuple[str, Tensor, int]] = []
        if has_fixed_parameters:
            named = (each for module in parts.modules for each in module.named_parameters())
            self.versions = [(n, p, p._version) for n, p in named if not p.is_inference()]

    def check(self) -> None:
        """Raises where something was changed between the forward and the backward."""
        for name, parameter, version in self.versions:
            if parameter._version != version:
                raise RuntimeError(
                    f"the tower's parameter {name!r} was changed in place after its forward, such "
                    f"as by optimizer.step(): back-propagate before, because the backward of "
                    f"gradient caching computes the forward again"
                )
        for module, training in self.modes:
            if module.training != training:
                mode = "train" if module.training else "eval"
                raise RuntimeError(
                    f"a {type(module).__name__} of the tower was switched by .{mode}() after its "
                    f"forward: back-propagate before, because the backward of gradient caching "
                    f"computes the forward again"
                )
