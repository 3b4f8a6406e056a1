"""Random calls of every function against the reference in float64, on every instruction set."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from budget import check_against_eager, values_and_gradients
from random_calls import (
    DTYPES,
    EPS,
    LOGIT_ROUNDINGS,
    SUM_ROUNDINGS,
    Call,
    Case,
    cases,
    check,
    check_bits,
    laid_out,
    largest,
)
from torch import Tensor

from mmcore import functional

FLAG = st.booleans()
# Nothing, about five blocks, everything.
WORKSPACES = st.sampled_from([0, 4 * 200_000, 2**28])
SIMILARITY = {
    "is_same": FLAG,
    "features": st.sampled_from(["unit", "long", "duplicates", "opposed", "opposed", "zeros"]),
    "scale": st.sampled_from([0.0, 1.0, -20.0, 100.0, 100.0, 1e4]),
    "bias": st.sampled_from([None, -10.0]),
    "pairs": st.sampled_from(["diagonal", "target", "one column", "partners", "labels", "labels"]),
    "groups": st.sampled_from(["none", "ids", "ids", "own"]),
    "shares_ids": st.sampled_from([True, True, False]),
    "classes": st.sampled_from([1, 2, 5, 50]),
    "first_id": st.sampled_from([2**40, -9]),
    "upstream": st.sampled_from(["random", "random", "loss", "first", "last"]),
    "wanted": st.sampled_from(["", "", "x", "y", "scale", "bias"]),
    "workspaces": st.tuples(WORKSPACES, WORKSPACES),
}
BIASES = st.sampled_from(["none", "none", "finite", "some -inf", "all -inf"])
SOFTMAX = {
    "denominator": st.sampled_from(["all", "negatives", "positives"]),
    "has_columns": st.sampled_from([True, True, False]),
    "joins_positives": st.sampled_from([False, False, True]),  # of labels
    "biases": st.tuples(BIASES, BIASES),
}
# Of many rows of few numbers one is nearly constant, or 0, or along its gradient: what is left of
# it is rounding, with eager too. test_projection.py has such rows on purpose.
FEWEST = 8
PROJECTION = {
    "norm": st.sampled_from([None, "layer", "rms"]),
    "normalize": FLAG,
    "vectors": st.tuples(FLAG, FLAG, FLAG),
    "eps": st.sampled_from([1e-12, 0.3]),
}


class Numbers:
    """Random numbers that follow from the seed of a case."""

    def __init__(self, case: Case) -> None:
        self.generator = torch.Generator().manual_seed(case.seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def unit_rows(self, rows: int, width: int) -> Tensor:
        return F.normalize(self.normal(rows, width))

    def integers(self, lowest: int, end: int, count: int) -> Tensor:
        return torch.randint(lowest, end, (count,), generator=self.generator)


# The similarity matrix


def features(case: Case, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """x and y in float32 and dense."""
    kind, direction = case.options["features"], numbers.unit_rows(1, case.width)
    x, y = (numbers.unit_rows(count, case.width) for count in (case.rows, case.columns))
    shared = (min(case.rows, case.columns) + 1) // 2
    if kind == "long" and case.kind != "float16":
        return x * numbers.normal(case.rows, 1) * 20, y * 3
    if kind == "duplicates":
        y[:shared] = x[:shared]
    elif kind == "opposed":
        x, y = F.normalize(direction + 0.1 * x), F.normalize(direction + 0.1 * y)
        x[-1], y[0] = -direction[0], -direction[0]
    elif kind == "zeros":
        x[shared // 2], y[-1] = 0, 0
    return x, y


def pairs_of(case: Case, columns: int, numbers: Numbers) -> dict[str, Tensor]:
    """target, labels and groups."""
    drawn, rows = case.options, case.rows

    def sides(name: str, row: Tensor, col: Tensor) -> dict[str, Tensor]:
        is_shared = drawn["is_same"] and drawn["shares_ids"]
        return {f"row_{name}": row} if is_shared else {f"row_{name}": row, f"col_{name}": col}

    def ids(classes: int) -> list[Tensor]:
        drawn_ids = (numbers.integers(-1, classes, count) for count in (rows, columns))
        return [torch.where(part < 0, -1, part + drawn["first_id"]) for part in drawn_ids]

    pairs: dict[str, Tensor] = {}
    if drawn["pairs"] == "labels":
        pairs = sides("label", *ids(drawn["classes"]))
    elif drawn["pairs"] == "partners":
        pairs = {"target": torch.arange(rows).flip(0) % columns}
    elif drawn["pairs"] != "diagonal" or rows > columns:
        lowest = columns - 1 if drawn["pairs"] == "one column" else -1
        pairs = {"target": numbers.integers(lowest, columns, rows)}
    if drawn["groups"] == "ids":
        pairs |= sides("group", *ids(2 * drawn["classes"]))
    elif drawn["groups"] == "own":
        pairs |= sides("group", torch.arange(rows), torch.arange(columns))
    return pairs


def bias_of(kind: str, count: int, numbers: Numbers) -> Tensor | None:
    if kind == "none":
        return None
    bias = 3 * numbers.normal(count)
    if kind == "some -inf":
        bias[numbers.integers(0, 3, count) == 0] = -torch.inf
    return bias if kind != "all -inf" else bias.fill_(-torch.inf)


def upstream_of(case: Case, sizes: dict[str, int], numbers: Numbers) -> dict[str, Tensor]:
    """Upstream gradients of the named outputs; () stands for a scalar."""
    random = {name: numbers.normal(max(1, size)).double() / 4 for name, size in sizes.items()}
    kind, names = case.options["upstream"], list(sizes)
    if kind == "loss":  # log-sum-exps or totals less positives
        half = len(names) // 2
        random = {
            name: torch.full_like(random[name], (1 if i < half else -1) / case.rows)
            for i, name in enumerate(names)
        }
    elif kind != "random":
        kept = names[0] if kind == "first" else names[-1]
        random = {kept: random[kept]}
    return {name: value[0] if sizes[name] == 0 else value for name, value in random.items()}


def similarity_call(case: Case, function: Any) -> Call:
    """A call of softmax_similarity or sigmoid_similarity; without a tensor y, y is x."""
    drawn, numbers, is_softmax = case.options, Numbers(case), "denominator" in case.options
    x, y = features(case, numbers)
    columns = case.rows if drawn["is_same"] else case.columns
    scale = min(drawn["scale"], 14.0) if case.kind == "float16" else drawn["scale"]
    # A gradient of the scale, summed over the matrix, may be beyond float16.
    may_be_short = case.seed % 2 and case.kind != "float16"
    scalar_dtype = DTYPES[case.kind] if may_be_short else torch.float32
    tensors = {"x": case.place(x), "scale": torch.tensor(scale, dtype=scalar_dtype)}
    if not drawn["is_same"]:
        tensors["y"] = case.place(y, 1)
    if drawn["bias"] is not None:
        tensors["bias"] = torch.tensor(drawn["bias"], dtype=scalar_dtype)
    options: dict[str, Any] = dict(pairs_of(case, columns, numbers))
    if not is_softmax:
        sizes = {"total": 0, "positive": 0}
    else:
        options |= {"denominator": drawn["denominator"], "columns": drawn["has_columns"]}
        if drawn["joins_positives"] and "row_label" in options:
            options["positives"] = "log_sum_exp"
        sides = zip(("row_bias", "col_bias"), drawn["biases"], (case.rows, columns), strict=True)
        for name, kind, count in sides:
            bias = bias_of(kind, count, numbers)
            if bias is not None:
                tensors[name] = bias.to(scalar_dtype)
        sizes = {"row_lse": case.rows, "col_lse": columns, "row_pos": case.rows, "col_pos": columns}
        if not drawn["has_columns"]:
            sizes = {name: size for name, size in sizes.items() if name.startswith("row")}
    upstream = upstream_of(case, sizes, numbers)

    def with_y(x: Tensor, y: Tensor | None = None, **others: Any) -> Any:
        return function(x, x if y is None else y, **others)

    wanted = [name for name in tensors if name.endswith(drawn["wanted"])]
    return Call(with_y, tensors, upstream, options, wanted)


def similarity_allowances(case: Case, call: Call) -> dict[str, float]:
    """What roundings of logits amount to in each result, from its terms' absolute values."""
    double = {name: value.double() for name, value in call.tensors.items()}
    x, scale = double["x"], double["scale"].abs()
    y = double.get("y", x)
    biases = {name: value for name, value in double.items() if name.endswith("bias")}
    finite = {name: value.nan_to_num(neginf=0).abs() for name, value in biases.items()}
    span = scale * x.norm(dim=1).max() * y.norm(dim=1).max() + sum(map(torch.max, finite.values()))
    # Against unit rows the gradient of the features is G, and here the absolute sum of its terms.
    options = dict(call.options)
    for name in ("label", "group"):
        if f"row_{name}" in options:
            options.setdefault(f"col_{name}", options[f"row_{name}"])
    upstream = {name: value.abs() for name, value in call.upstream.items()}
    if "total" in upstream:  # G is formed as (a + c) − a·σ(−s) at positives
        upstream["positive"] = upstream["total"] + upstream.get("positive", 0)
    logits = {"x": double["scale"] * x @ y.T, "y": torch.eye(len(y), dtype=torch.float64)}
    g = Call(call.function, logits | biases, upstream, options).run(backend="reference")["grad_x"]
    logits["x"] = logits["x"].abs()
    sizes = Call(call.function, logits | finite, upstream, options).run(backend="reference")
    of_logit = EPS * LOGIT_ROUNDINGS * (1 + span.item())
    of_sum = of_logit + EPS * SUM_ROUNDINGS
    of_product = of_sum + (2**-8 if case.kind in ("bfloat16", "medium") else 0)  # G is rounded too
    grad_x, grad_y = scale * g @ y.abs(), scale * g.T @ x.abs()
    allowances = {name: of_sum * largest(size) for name, size in sizes.items()}
    if options.get("positives") == "log_sum_exp":
        allowances |= {"row_pos": of_logit, "col_pos": of_logit}
    return allowances | {
        "row_lse": of_logit,
        "col_lse": of_logit,
        "grad_x": of_product * largest(grad_x if "y" in double else grad_x + grad_y),
        "grad_y": of_product * largest(grad_y),
        "grad_scale": of_product * (g * (x.abs() @ y.abs().T)).sum().item(),
        "grad_bias": of_sum * g.sum().item(),
        "grad_row_bias": of_sum * largest(g.sum(1)),
        "grad_col_bias": of_sum * largest(g.sum(0)),
    }


@cases(1000, **SIMILARITY, **SOFTMAX)
def test_softmax_similarity(compiled: str, threads: None, case: Case) -> None:
    call = similarity_call(case, functional.softmax_similarity)
    first, second = (call.run_kernel(case, size) for size in case.options["workspaces"])
    check_bits(first, second)
    check(call, first, similarity_allowances(case, call))


@cases(500, **SIMILARITY)
def test_sigmoid_similarity(compiled: str, threads: None, case: Case) -> None:
    call = similarity_call(case, functional.sigmoid_similarity)
    size, other = case.options["workspaces"]
    first = call.run_kernel(case, size)
    check_bits(first, call.run_kernel(case, size))
    allowances = similarity_allowances(case, call)
    check(call, first, allowances)
    check(call, call.run_kernel(case, other), allowances)


# Projection and normalisation: a few draws each, the worst error against eager's worst


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


@cases(150, **PROJECTION)
def test_project(compiled: str, threads: None, case: Case) -> None:
    drawn, numbers = case.options, Numbers(case)
    width = max(2 if drawn["norm"] is None else FEWEST, case.width)
    depth = max(FEWEST if drawn["normalize"] else 1, case.columns % 97 + 2)
    shapes = {"x": (case.rows, width), "weight": (depth, width)}
    candidates = {"bias": depth, "norm_weight": width, "norm_bias": width}
    takes = {None: 1, "rms": 2, "layer": 3}[drawn["norm"]]
    for name, has in list(zip(candidates, drawn["vectors"], strict=True))[:takes]:
        if has:
            shapes[name] = (candidates[name],)

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
        return eager_projection(named, drawn["norm"], drawn["eps"] if drawn["normalize"] else None)

    def reordered(seed: int) -> Any:
        order_of_x, order_of_output = orders(seed, width, depth)

        def run(*tensors: Tensor) -> Tensor:
            named = dict(zip(shapes, tensors, strict=True))
            named = {
                name: t[..., order_of_output if name == "bias" else order_of_x]
                for name, t in named.items()
            }
            named["weight"] = named["weight"][order_of_output]
            eps = drawn["eps"] if drawn["normalize"] else None
            return eager_projection(named, drawn["norm"], eps)[:, order_of_output.argsort()]

        return run

    check_draws(case, kernel, [eager, *map(reordered, range(4))], list(shapes), draw)


def orders(seed: int, *sizes: int) -> list[Tensor]:
    """A permutation of each size."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(size, generator=generator) for size in sizes]


@cases(100, eps=PROJECTION["eps"])
def test_l2_normalize(compiled: str, threads: None, case: Case) -> None:
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
