"""Launches of the backward of softmax_similarity that form G, chunk by chunk, and its products."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.triton import hopper
from mmcore.backends.triton.arguments import Chunk, Strides
from mmcore.backends.triton.inputs import pointer
from mmcore.backends.triton.launch import (
    chunk_of_gradient,
    chunk_rows,
    row_tile,
    whole,
    within_memory,
)
from mmcore.backends.triton.softmax_similarity.gradient import (
    BiasSums,
    ScaleParts,
    store_gradient_kernel,
)
from mmcore.backends.triton.softmax_similarity.gradient_tile import Form
from mmcore.backends.triton.softmax_similarity.gradient_totals import (
    Gradient,
    GradientTotals,
    Needs,
)

# Grid size of a launch for tiles that the shared shift cannot serve: there seldom are any.
EXACT_PROGRAMS = 1024
# Columns of an exact tile where E was kept, and its depth at a time, for as few registers.
EXACT_COLUMNS, EXACT_DEPTH = 16, 32


class Found(NamedTuple):
    """What the chunks add up to; None for what is not needed."""

    x: Tensor | None
    y: Tensor | None
    scale: Tensor | None
    row_bias: Tensor | None
    col_bias: Tensor | None


class Launch(NamedTuple):
    """A launch that forms G of a chunk, and stores parts of the scale's gradient."""

    first_part: int
    parts: int  # one of each program of the Triton kernel
    form: Form | None  # None for Hopper's kernel
    constants: dict[str, object]


class Step(NamedTuple):
    """A chunk of rows."""

    first: int
    rows: int
    is_kept: bool
    launches: tuple[Launch, ...]
    first_part: int  # of the product


class Plan(NamedTuple):
    """The chunks of a backward, in their order."""

    steps: tuple[Step, ...]
    rows: int  # of the largest
    parts: int  # of all launches, of which the last one adds them up


def gradients(gradient: Gradient, needs: Needs, kept_bytes: int, scale_like: Tensor) -> Found:
    """By chunks of as many rows as the workspace holds beside what was kept."""
    matrix = gradient.matrix
    block = max(gradient.tile.BM, gradient.kept_tile.BM)
    size = chunk_rows(
        matrix.inputs.x, matrix.size.columns, matrix.recipe.dtype.itemsize, block, kept_bytes
    )
    return within_memory(partial(_by_chunks, gradient, needs, scale_like), size, block)


def _by_chunks(gradient: Gradient, needs: Needs, scale_like: Tensor, size: int) -> Found:
    matrix, x, plan = gradient.matrix, gradient.matrix.inputs.x, plan_of(gradient, needs, size)
    memory = chunk_of_gradient(x, plan.rows, matrix.size.columns, matrix.recipe.dtype)
    totals = GradientTotals(gradient, needs, len(plan.steps) == 1)
    # Hopper's kernel stores its parts whether they are wanted or not.
    parts = x.new_empty(plan.parts, dtype=torch.float64)
    total = scale_like.new_empty(scale_like.shape) if needs.scale else None
    last = plan.steps[-1]
    for step in plan.steps:
        g = memory if step.rows == plan.rows else memory[: step.rows]
        sums = totals.new_sums(g, step.is_kept)
        for launch in step.launches:
            of_scale = ScaleParts(parts, launch.first_part, plan.parts, pointer(total, parts))
            _store_gradient(gradient, g, step.first, sums, of_scale, launch)
        of_scale = ScaleParts(parts, step.first_part, plan.parts, pointer(total, parts))
        totals.add(step.first, g, sums, of_scale, step.is_kept, step is last)
    return Found(*totals.products(), total, *totals.sums())


def plan_of(gradient: Gradient, needs: Needs, size: int) -> Plan:
    """The plan of the gradient's recipe, which a training loop makes once."""
    plans = gradient.matrix.recipe.plans
    key = needs, size, gradient.kept.shape[0], gradient.is_loss
    found = plans.get(key)
    if found is None:
        found = plans[key] = _new_plan(gradient, needs, size)
    return found


def _new_plan(gradient: Gradient, needs: Needs, size: int) -> Plan:
    matrix, steps, parts = gradient.matrix, [], 0
    rows, kept_rows = matrix.size.rows, min(matrix.size.rows, gradient.kept.shape[0])
    for start, stop, is_kept in ((0, kept_rows, True), (kept_rows, rows, False)):
        for first in range(start, stop, size):
            count = min(size, stop - first)
            is_last = first + count == rows
            launches = _launches(gradient, needs, count, is_kept, is_last, parts)
            parts = launches[-1].first_part + launches[-1].parts
            steps.append(Step(first, count, is_kept, launches, parts))
            if is_kept and needs.scale:
                parts += whole(count, row_tile(matrix.inputs.x.shape[1]).ROWS)
    return Plan(tuple(steps), min(size, rows), parts)


def _launches(
    gradient: Gradient, needs: Needs, count: int, is_kept: bool, is_last: bool, first_part: int
) -> tuple[Launch, ...]:
    """Those that form G of `count` rows: of exact tiles, which few matrices have, by one more."""
    matrix, tile = gradient.matrix, gradient.tile_of(is_kept)
    tiles = whole(count, tile.BM) * whole(matrix.size.columns, tile.BN)
    form = Form(
        is_kept, False, needs.sums, needs.scale, False, gradient.is_loss, gradient.needs_factor,
        gradient.terms_count,
    )  # fmt: skip
    narrow = matrix.settings(tile._replace(BN=EXACT_COLUMNS, BK=EXACT_DEPTH))["TILE"]
    constants = {"SIDES": matrix.recipe.sides, "NARROW": narrow, **matrix.settings(tile)}
    first = Launch(first_part, tiles, form, {**constants, "FORM": form})
    if is_kept:
        return (first,)
    if gradient.is_hopper:
        parts = hopper.launches().gradient_parts(count, matrix.size.columns, matrix.inputs.x.device)
        first = Launch(first_part, parts, None, {})
    form = form._replace(IS_EXACT=True, IS_LAST=is_last)
    exact = min(EXACT_PROGRAMS, tiles)
    return first, Launch(first_part + first.parts, exact, form, {**constants, "FORM": form})


def _store_gradient(
    gradient: Gradient, g: Tensor, first: int, sums: BiasSums, of_scale: ScaleParts, launch: Launch
) -> None:
    """G of the rows from `first` on, and its partial sums."""
    matrix, form = gradient.matrix, launch.form
    if form is None:
        hopper.launches().store_gradient(
            matrix, gradient.numbers, gradient.terms, gradient.given, first, g, of_scale.part,
            of_scale.first, is_loss=gradient.is_loss, count=gradient.terms_count,
        )  # fmt: skip
        return
    of_x, of_y, _, _ = matrix.recipe.strides
    store_gradient_kernel[(launch.parts,)](
        *matrix.operands(gradient.tile_of(form.HAS_KEPT)), gradient.numbers, gradient.terms,
        matrix.ids, gradient.kept if form.HAS_KEPT else g, g, sums, of_scale, gradient.given,
        Chunk(first, g.shape[0]), matrix.size,
        Strides(of_x, of_y, g.stride(0), gradient.kept.shape[1]), **launch.constants,
    )  # fmt: skip
