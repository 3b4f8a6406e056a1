"""What a tower consists of, and which towers cannot be computed in chunks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcore.gradient_caching.chunks import Tower

CONTAINERS = (list, tuple, dict)


class Parts(NamedTuple):
    """The modules and tensors that a tower reads."""

    modules: tuple[nn.Module, ...]  # the outermost
    tensors: tuple[Tensor, ...]  # beside those of the modules
    is_module: bool  # or a method of one; another function may read more than what was found

    @classmethod
    def of(cls, tower: Tower) -> Parts:
        """Of a module, a method of one, a partial, or a function that refers to modules."""
        found = list(_parts(tower, set()))
        modules = tuple(part for part in found if isinstance(part, nn.Module))
        tensors = tuple(part for part in found if isinstance(part, Tensor))
        is_module = any(isinstance(each, nn.Module) for each in (tower, owner_of(tower)))
        return cls(modules, tensors, is_module)

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
        """Whether some parameter does, or may."""
        return not self.is_module or any(p.requires_grad for p in self.parameters())


def _parts(value: Any, seen: set[int]) -> Iterator[nn.Module | Tensor]:
    """The modules and tensors in what a function refers to."""
    if id(value) in seen:
        return
    seen.add(id(value))
    inner: Iterable[Any] = ()
    if isinstance(value, nn.Module | Tensor):
        yield value
    elif isinstance(value, partial):
        inner = (value.func, *value.args, *value.keywords.values())
    elif inspect.ismethod(value):
        inner = (value.__self__, value.__func__)
    elif inspect.isfunction(value):
        inner = _referred(value)
    else:
        inner = _held(value)
    for each in inner:
        yield from _parts(each, seen)


def _held(value: Any) -> list[nn.Module | Tensor]:
    """The modules and tensors in a container, or in the attributes of an object and in containers
    there. No further: an object may hold a data set.
    """
    containers = [value, *getattr(value, "__dict__", {}).values()]
    values = [getattr(value, "__dict__", {})] + [c for c in containers if isinstance(c, CONTAINERS)]
    each = (v for c in values for v in (c.values() if isinstance(c, dict) else c))
    return [v for v in each if isinstance(v, nn.Module | Tensor)]


def _referred(function: Any) -> list[Any]:
    """What a function of Python refers to: names around it, its defaults."""
    cells = (cell for cell in function.__closure__ or ())
    names = (function.__globals__.get(name) for name in function.__code__.co_names)
    kinds = (nn.Module, Tensor, partial, *CONTAINERS)
    return [
        *(cell.cell_contents for cell in cells if _is_set(cell)),
        *(v for v in names if isinstance(v, kinds) or inspect.ismethod(v) or _is_near(v, function)),
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
    ]


def _is_near(value: Any, function: Any) -> bool:
    """Whether `value` is a function of the same file: those of libraries have no towers."""
    return inspect.isfunction(value) and value.__module__ == function.__module__


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  an empty cell raises
    except ValueError:
        return False
    return True


def owner_of(tower: Tower) -> object:
    """The object whose method the tower is, if it is one."""
    while isinstance(tower, partial):
        tower = tower.func
    return getattr(tower, "__self__", None)


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

    def _buffers(self) -> Iterator[tuple[tuple[int, str], tuple[Tensor, int]]]:
        """By the number of the module and the name in it: the buffer and how often it changed."""
        for number, module in enumerate(self.parts.modules):
            for name, buffer in module.named_buffers():
                if not buffer.is_inference():
                    yield (number, name), (buffer, buffer._version)

    def check(self) -> None:
        """Raises where a buffer was changed, in place or by another of the same shape."""
        for key, (buffer, version) in self._buffers():
            before, version_before = self.before.get(key, (buffer, version))
            is_same = buffer is before and version == version_before
            if not is_same and buffer.shape == before.shape:
                raise RuntimeError(
                    f"tower changes its buffer {key[1]!r} in its forward, which gradient caching "
                    f"runs twice for every chunk: the second time is not the same as the first. "
                    f"Such modules (batch normalisation, spectral norm, moving averages, queues) "
                    f"belong outside of what is cached, or in .eval()"
                )


class Snapshot:
    """Parameters and modes, as the forward found them: the replay needs the same."""

    def __init__(self, parts: Parts) -> None:
        self.modes = [(module, module.training) for _, module in parts.named_modules()]
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
