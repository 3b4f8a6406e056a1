"""An op family: schema, fake, autograd and dispatch, derived from the tuples of its contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mmcore import backends
from mmcore.backends.inputs import arithmetic_dtype
from mmcore.ops.autograd import differentiable, once_differentiable
from mmcore.ops.define import define
from mmcore.ops.flops import Product, backward_flops, forward_flops
from mmcore.ops.layout import Layout, flat, nested, sizes_of
from mmcore.ops.schema import fields, schema

# All are NamedTuples.
Inputs = TypeVar("Inputs", bound=tuple[Any, ...])
Results = TypeVar("Results", bound=tuple[Any, ...])
Upstream = TypeVar("Upstream", bound=tuple[Any, ...])
Wanted = TypeVar("Wanted", bound=tuple[Any, ...])
ClosedForm = Callable[[Inputs, Results, Upstream], Tensor]


class Family(Generic[Inputs, Results, Upstream, Wanted]):
    """``mmcore::<name>`` and ``mmcore::<name>_backward``, registered, and the call of both.

    Args:
        inputs: what the op takes.
        results: what it returns. If `kept` is among them, the op also takes ``kept_size``.
        upstream: the results that have gradients.
        wanted: the inputs that have gradients from the backward op.
        fake: shapes and dtypes of the results; takes the inputs, and ``kept_size`` if the op does.
        reads: names of the results that the backward reads for some inputs; by default all. Only
            these are saved: the caller may change the others in place. The backward gets an empty
            tensor for each of the others.
        products: the matrix products of the plain formula, with the gradients that are wanted; by
            default none.
        decomposes: whether exporters may put the reference's operators in place of the op.
        serves: what has `forward` and `backward` on a backend, given its name; by default the
            backend's file of the family.
        closed_forms: gradients of further inputs, which need no backend.

    A backend's file has `forward`, which takes the inputs (and ``kept_size``) and returns the
    results, and `backward`, which takes the inputs, the results, their gradients, which gradients
    are wanted, and whether those are rounded to the dtypes of the inputs. It may leave the rounding
    to the caller. A family may have a list of tensors among its inputs, and then no other list.
    """

    def __init__(
        self, name: str, *, inputs: type[Inputs], results: type[Results], upstream: type[Upstream],
        wanted: type[Wanted], fake: Callable[..., Results],
        reads: Callable[[Inputs], Collection[str]] | None = None,
        products: Callable[[Inputs, Wanted], Iterable[Product]] = lambda inputs, wanted: (),
        closed_forms: Mapping[str, ClosedForm[Inputs, Results, Upstream]] | None = None,
        decomposes: bool = False, serves: Callable[[str], Any] | None = None,
    ) -> None:  # fmt: skip
        self.serves = serves or (lambda backend: backends.implementation(backend, name))
        self.name, self.fake, self.closed_forms = name, fake, dict(closed_forms or {})
        self.inputs, self.results, self.upstream, self.wanted = inputs, results, upstream, wanted
        self.input_types, self.result_types = fields(inputs), fields(results)
        self.upstream_types, self.wanted_types = fields(upstream), fields(wanted)
        self.wanted_at = [list(self.input_types).index(name) for name in self.wanted_types]
        self.products = products
        self.reads = reads or (lambda inputs: self.result_types)
        self.keeps = "kept" in self.result_types
        types = list(self.input_types.values())
        self.list_at = types.index("Tensor[]") if "Tensor[]" in types else None
        assert self.list_at is None or sum(kind.endswith("[]") for kind in types) == 1
        self._without_list = self._layout(0)
        self._op, backward_op = self._define(decomposes)
        self._backward_op = once_differentiable(backward_op)
        self._call = differentiable(self._flat_call, save=self._save, backward=self._backward)

    def __call__(self, inputs: Inputs, *, kept_size: int = 0, backend: str) -> Results:
        """The results, differentiable."""
        kept = (kept_size,) if self.keeps else ()
        if self.list_at is None:
            return self.results(*self._call(*inputs, *kept, backend))
        count = len(inputs[self.list_at])
        found = self._call(*flat(inputs), *kept, backend, count)
        return self.results(*nested(found, sizes_of(self.result_types, count)))

    def backward(
        self, inputs: Inputs, results: tuple[Any, ...], upstream: Upstream, wanted: Wanted, *,
        rounds: bool, backend: str,
    ) -> Sequence[Tensor | list[Tensor]]:  # fmt: skip
        """One gradient for each field of `wanted`, empty where it is not wanted.

        Gradients are in the dtypes of the inputs, or without `rounds` in that of the arithmetic.
        """
        op = getattr(torch.ops.mmcore, f"{self.name}_backward")
        gradients = op(*inputs, *results, *upstream, flat(wanted), rounds, backend)
        return (gradients,) if isinstance(gradients, Tensor) else gradients

    # The ops

    def _define(self, decomposes: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
        kept = {"kept_size": "SymInt"} if self.keeps else {}
        arguments = {**self.input_types, **kept, "backend": "str"}
        forward = define(
            self.name, schema(arguments, self.result_types),
            fake=self._fake_forward, run=self._run_forward, flops=self._forward_flops,
            decomposes=decomposes,
        )  # fmt: skip
        upstream = {f"grad_{name}": kind for name, kind in self.upstream_types.items()}
        settings = {"wanted": "bool[]", "rounds": "bool", "backend": "str"}
        gradients = {
            f"grad_{name}": "Tensor[]" if self.input_types[name] == "Tensor[]" else "Tensor"
            for name in self.wanted_types
        }
        arguments = {**self.input_types, **self.result_types, **upstream, **settings}
        backward = define(
            f"{self.name}_backward", schema(arguments, gradients),
            fake=self._fake_backward, run=self._run_backward, flops=self._backward_flops,
        )  # fmt: skip
        return forward, backward

    def _run_forward(self, backend: str, *arguments: Any) -> Any:
        count = len(self.input_types)
        forward = self.serves(backend).forward
        found: tuple[Any, ...] = forward(self.inputs(*arguments[:count]), *arguments[count:])
        return _as_returned(found)

    def _run_backward(self, backend: str, *arguments: Any) -> Any:
        inputs, results, upstream, wanted, rounds = self._parts(arguments)
        backward = self.serves(backend).backward
        gradients = backward(inputs, results, upstream, wanted, rounds)
        likes, flags = [inputs[i] for i in self.wanted_at], list(wanted)
        if self.list_at is not None:
            gradients, likes, flags = flat(gradients), flat(likes), flat(flags)
        rounded = [
            _as_input(gradient, like, rounds)
            if is_wanted and gradient is not None and like is not None
            else backends.first_tensor(inputs).new_empty(0)
            for gradient, like, is_wanted in zip(gradients, likes, flags, strict=True)
        ]
        if self.list_at is not None:
            rounded = nested(rounded, self._wanted_sizes(inputs))
        return _as_returned(rounded)

    def _fake_forward(self, *arguments: Any) -> Any:
        count = len(self.input_types)
        return _as_returned(self.fake(self.inputs(*arguments[:count]), *arguments[count:-1]))

    def _fake_backward(self, *arguments: Any) -> Any:
        inputs, _, _, wanted, rounds = self._parts(arguments[:-1])
        first = backends.first_tensor(inputs)
        gradients = [
            first.new_empty(0)
            if like is None or not is_wanted
            else like.new_empty(like.shape, dtype=_gradient_dtype(like, rounds))
            for like, is_wanted in zip(
                flat([getattr(inputs, name) for name in self.wanted_types]), flat(wanted),
                strict=True,
            )
        ]  # fmt: skip
        return _as_returned(nested(gradients, self._wanted_sizes(inputs)))

    def _forward_flops(self, *arguments: Any, **output: Any) -> int:
        inputs = self.inputs(*arguments[: len(self.input_types)])
        sizes = self._wanted_sizes(inputs)
        nothing = nested([False] * sum(size or 1 for size in sizes), sizes)
        return forward_flops(self.products(inputs, self.wanted(*nothing)))

    def _backward_flops(self, *arguments: Any, **output: Any) -> int:
        inputs, _, _, wanted, _ = self._parts(arguments[:-1])
        return backward_flops(self.products(inputs, wanted))

    def _parts(self, arguments: Sequence[Any]) -> tuple[Inputs, Results, Upstream, Wanted, bool]:
        """The arguments of the backward op as the tuples of the contract; the backend is left."""
        *values, flat_wanted, rounds = arguments
        begin, end = len(self.input_types), len(self.input_types) + len(self.result_types)
        inputs = self.inputs(*values[:begin])
        if self.list_at is not None:
            flat_wanted = nested(flat_wanted, self._wanted_sizes(inputs))
        wanted = self.wanted(*flat_wanted)
        results, upstream = self.results(*values[begin:end]), self.upstream(*values[end:])
        return inputs, results, upstream, wanted, rounds

    def _wanted_sizes(self, inputs: Inputs) -> list[int | None]:
        count = 0 if self.list_at is None else len(inputs[self.list_at])
        return sizes_of({name: self.input_types[name] for name in self.wanted_types}, count)

    # Autograd: a family with a list passes its tensors one by one, and their number at the end.

    def _layout(self, count: int) -> Layout:
        return Layout(
            self.input_types, self.result_types, wanted=tuple(self.wanted_types),
            upstream=tuple(self.upstream_types), count=count,
        )  # fmt: skip

    def _inputs(self, values: Sequence[Any], layout: Layout) -> Inputs:
        """From the flat values."""
        inputs = values[: layout.input_count]
        return self.inputs(
            *(inputs if self.list_at is None else nested(inputs, layout.input_sizes))
        )

    def _flat_call(self, *values: Any) -> tuple[Tensor, ...]:
        if self.list_at is None:
            found = self._op(*values)
            return (found,) if isinstance(found, Tensor) else found
        *flat_values, count = values
        layout = self._layout(count)
        inputs = self._inputs(flat_values, layout)
        return tuple(flat(self._op(*inputs, *flat_values[layout.input_count :])))

    def _save(self, ctx: Any, values: Sequence[Any], output: tuple[Tensor, ...]) -> None:
        layout = self._without_list
        if self.list_at is not None:
            *values, count = values
            layout = self._layout(count)
        ctx.layout, ctx.backend = layout, values[-1]
        ctx.settings = [values[i] for i in layout.settings]
        ctx.reads = tuple(self.reads(self._inputs(values, layout)))
        ctx.mark_non_differentiable(*[output[i] for i in layout.non_differentiable])
        ctx.set_materialize_grads(False)  # zeros as large as every result otherwise
        read = [output[i] for name in ctx.reads for i in layout.results[name]]
        ctx.save_for_backward(*[values[i] for i in layout.tensors], *read)

    def _backward(self, ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        values, results = self._saved(ctx, layout)
        upstream = self._upstream(values, [gradients[i] for i in layout.upstream])
        needed = ctx.needs_input_grad
        wanted = [needed[i] for i in layout.wanted]
        found: list[Tensor | None] = [None] * len(needed)
        if any(wanted):
            arguments = (*values, *results, *upstream, wanted, True, ctx.backend)
            for i, gradient in zip(layout.wanted, self._backward_op(*arguments), strict=True):
                if needed[i]:
                    found[i] = gradient
        for name, closed_form in self.closed_forms.items():
            (i,) = layout.inputs[name]
            if needed[i]:
                inputs = self.inputs(*values)
                found[i] = closed_form(inputs, self.results(*results), self.upstream(*upstream))
        return tuple(found)

    def _saved(self, ctx: Any, layout: Layout) -> tuple[list[Any], list[Any]]:
        """The inputs, and the results that the backward reads; lists are lists again."""
        saved = ctx.saved_tensors
        values: list[Any] = [None] * layout.input_count
        for i, tensor in zip(layout.tensors, saved, strict=False):
            values[i] = tensor
        for i, setting in zip(layout.settings, ctx.settings, strict=True):
            values[i] = setting
        read = [i for name in ctx.reads for i in layout.results[name]]
        is_complete = len(read) == layout.result_count
        unread = None if is_complete else saved[0].new_empty(0)
        results: list[Any] = [unread] * layout.result_count
        for i, tensor in zip(read, saved[len(layout.tensors) :], strict=True):
            results[i] = tensor
        if self.list_at is None:
            return values, results
        return nested(values, layout.input_sizes), nested(results, layout.result_sizes)

    def _upstream(self, values: Sequence[Any], gradients: list[Tensor | None]) -> list[Any]:
        """The gradients of results; zeros for those that autograd does not have."""
        if all(gradient is not None for gradient in gradients):
            return gradients
        likes = self.fake(self.inputs(*values), *((0,) if self.keeps else ()))
        return [
            torch.zeros_like(getattr(likes, name)) if gradient is None else gradient
            for name, gradient in zip(self.upstream_types, gradients, strict=True)
        ]


def _as_returned(values: Sequence[Any]) -> Any:
    """What an op returns: a tuple, or its only result."""
    return values[0] if len(values) == 1 else tuple(values)


def _as_input(gradient: Tensor, like: Tensor, rounds: bool) -> Tensor:
    dtype = _gradient_dtype(like, rounds)
    gradient = gradient if gradient.dtype == dtype else gradient.to(dtype)
    return gradient if gradient.shape == like.shape else gradient.reshape(like.shape)


def _gradient_dtype(like: Tensor, rounds: bool) -> torch.dtype:
    return like.dtype if rounds else arithmetic_dtype(like.dtype)
