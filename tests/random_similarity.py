"""Random calls of softmax_similarity and sigmoid_similarity, and what rounding they are allowed."""

from __future__ import annotations

from typing import Any, NamedTuple

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from random_calls import (
    DTYPES,
    EPS,
    LOGIT_ROUNDINGS,
    SUM_ROUNDINGS,
    Call,
    Case,
    Numbers,
    largest,
)
from torch import Tensor

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


class Roundings(NamedTuple):
    """What a backend rounds to fewer digits than float32 has, relative to each number."""

    product: float = 0.0  # of G, before its products
    exponent: float = 0.0  # of exponentials
    kept: float = 0.0  # of exponentials that the forward keeps

    @staticmethod
    def of_cpu(case: Case) -> Roundings:
        return Roundings(2**-8 if case.kind in ("bfloat16", "medium") else 0.0)

    @staticmethod
    def of_triton(case: Case, workspace: int) -> Roundings:
        """Of products of 16 bits: exponents near 80 are float32 numbers (triton/tiles.py), G has 16
        bits, and so have exponentials that are kept, of bfloat16 only (mmcore.workspace).
        """
        if case.kind == "float32":
            return Roundings()
        if case.kind == "float16":
            return Roundings(2**-10, 4e-6)
        return Roundings(2**-8, 4e-6, 2**-8 if workspace else 0.0)


def similarity_allowances(case: Case, call: Call, roundings: Roundings) -> dict[str, float]:
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
    of_logit = EPS * LOGIT_ROUNDINGS * (1 + span.item()) + roundings.exponent
    of_sum = of_logit + EPS * SUM_ROUNDINGS
    of_bias = of_sum + roundings.kept
    of_product = of_bias + roundings.product
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
        "grad_bias": of_bias * g.sum().item(),
        "grad_row_bias": of_bias * largest(g.sum(1)),
        "grad_col_bias": of_bias * largest(g.sum(0)),
    }
