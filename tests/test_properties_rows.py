"""Random calls of project and l2_normalize: of a few draws the worst error, and eager's worst."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from budget import check_against_eager, values_and_gradients
from machines import RANDOM_CALLS
from random_calls import Case, Numbers, cases, laid_out
from torch import Tensor

from mmcore import functional

# Of many rows of few numbers one is nearly constant, or 0, or along its gradient: what is left of
# it is rounding, with eager too. test_projection.py has such rows on purpose.
FEWEST = 8
PROJECTION = {
    "norm": st.sampled_from([None, "layer", "rms"]),
    "normalize": st.booleans(),
    "vectors": st.tuples(st.booleans(), st.booleans(), st.booleans()),
    "eps": st.sampled_from([1e-12, 0.3]),
}


def check_draws(case: Case, kernel: Any, eager: list[Any], names: list[str], draw: Any) -> None:
    """`kernel(*draw())` is as exact as `eager`, in several orders, and has the same bits twice."""

    def on_threads(*tensors: Tensor) -> list[Tensor]:
        torch.set_num_threads(case.threads)
        return [kernel(*tensors)]

    def on_one(function: Any) -> Any:
        def run(*tensors: Tensor) -> list[Tensor]:
            torch.set_num_threads(1)
            return [function(*tensors)]

        return run

    draws = [draw() for _ in range(2 if case.rows > 70 else 12)]
    results = ["output", *(f"grad_{name}" for name in names)]
    check_against_eager(on_threads, [on_one(function) for function in eager], draws, results)
    dtype = draws[0][0].dtype
    first, second = (values_and_gradients(on_threads, draws[0], dtype) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def eager_projection(named: dict[str, Tensor], norm: str | None, eps: float | None) -> Tensor:
    """What `project` replaces; without `eps` the rows of its output stay as long as they are."""
    x, vectors = named["x"], {name: named.get(f"norm_{name}") for name in ("weight", "bias")}
    if norm == "layer":
        x = F.layer_norm(x, x.shape[-1:], **vectors)
    elif norm == "rms":
        x = F.rms_norm(x, x.shape[-1:], vectors["weight"], 1e-5)
    output = F.linear(x, named["weight"], named.get("bias"))
    return output if eps is None else F.normalize(output, dim=-1, eps=eps)


@cases(RANDOM_CALLS["project"]["best"], **PROJECTION)
def test_project(best: str, threads: None, case: Case) -> None:
    check_project(case)


@cases(RANDOM_CALLS["project"]["others"], **PROJECTION)
def test_project_elsewhere(others: str, threads: None, case: Case) -> None:
    check_project(case)


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    """The tensors that `project` is given."""
    drawn = case.options
    width = max(2 if drawn["norm"] is None else FEWEST, case.width)
    depth = max(FEWEST if drawn["normalize"] else 1, case.columns % 97 + 2)
    shapes: dict[str, tuple[int, ...]] = {"x": (case.rows, width), "weight": (depth, width)}
    candidates = {"bias": depth, "norm_weight": width, "norm_bias": width}
    takes = {None: 1, "rms": 2, "layer": 3}[drawn["norm"]]
    for name, has in list(zip(candidates, drawn["vectors"], strict=True))[:takes]:
        if has:
            shapes[name] = (candidates[name],)
    return shapes


def check_project(case: Case) -> None:
    drawn, numbers, shapes = case.options, Numbers(case), shapes_of(case)
    eps = drawn["eps"] if drawn["normalize"] else None

    def draw() -> list[Tensor]:
        x, *parameters = (numbers.normal(*shape) for shape in shapes.values())
        x = case.place(x)
        # A weight of equal rows has a gradient of exactly 0 through the normalisation.
        layout = "transposed" if case.layouts[1] == "expanded" else case.layouts[1]
        weight = laid_out(parameters[0].to(x.dtype), layout)
        return [x, weight, *(vector.to(x.dtype) for vector in parameters[1:])]

    def kernel(*tensors: Tensor) -> Tensor:
        options = {name: drawn[name] for name in ("norm", "normalize", "eps")}
        return functional.project(
            **dict(zip(shapes, tensors, strict=True)), **options, backend="cpu"
        )

    def eager(*tensors: Tensor) -> Tensor:
        named = dict(zip(shapes, tensors, strict=True))
        return eager_projection(named, drawn["norm"], eps)

    def reordered(seed: int) -> Any:
        order_of_x, order_of_output = orders(seed, shapes["x"][1], shapes["weight"][0])

        def run(*tensors: Tensor) -> Tensor:
            named = dict(zip(shapes, tensors, strict=True))
            named = {
                name: t[..., order_of_output if name == "bias" else order_of_x]
                for name, t in named.items()
            }
            named["weight"] = named["weight"][order_of_output]
            return eager_projection(named, drawn["norm"], eps)[:, order_of_output.argsort()]

        return run

    check_draws(case, kernel, [eager, *map(reordered, range(4))], list(shapes), draw)


def orders(seed: int, *sizes: int) -> list[Tensor]:
    """A permutation of each size."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(size, generator=generator) for size in sizes]


@cases(RANDOM_CALLS["l2_normalize"]["best"], eps=PROJECTION["eps"])
def test_l2_normalize(best: str, threads: None, case: Case) -> None:
    check_l2_normalize(case)


@cases(RANDOM_CALLS["l2_normalize"]["others"], eps=PROJECTION["eps"])
def test_l2_normalize_elsewhere(others: str, threads: None, case: Case) -> None:
    check_l2_normalize(case)


def check_l2_normalize(case: Case) -> None:
    numbers, eps = Numbers(case), case.options["eps"]

    def draw() -> list[Tensor]:
        return [case.place(numbers.normal(case.rows, max(FEWEST, case.width)) / 4)]

    def kernel(x: Tensor) -> Tensor:
        return functional.l2_normalize(x, eps=eps, backend="cpu")

    def eager(x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=eps)

    def reordered(seed: int) -> Any:
        (order,) = orders(seed, max(FEWEST, case.width))
        return lambda x: eager(x[:, order])[:, order.argsort()]

    check_draws(case, kernel, [eager, *map(reordered, range(4))], ["x"], draw)
