"""Launches of the backward of softmax_similarity that form G, chunk by chunk, and its products."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.triton import hopper
from mmcore.backends.triton.arguments import Chunk
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


class Step(NamedTuple):
    """A chunk of rows, and how many parts of the scale's gradient its launches leave."""

    first: int
    rows: int
    is_kept: bool
    # Of Hopper's launch, of Triton's, of the one for exact tiles, of the product; 0 without it.
    parts: tuple[int, int, int, int]


def gradients(gradient: Gradient, needs: Needs, kept_bytes: int, scale_like: Tensor) -> Found:
    """By chunks of as many rows as the workspace holds beside what was kept."""
    matrix = gradient.matrix
    block = max(gradient.tile.BM, gradient.kept_tile.BM)
    size = chunk_rows(
        matrix.inputs.x, matrix.size.columns, matrix.recipe.dtype.itemsize, block, kept_bytes
    )
    return within_memory(partial(_by_chunks, gradient, needs, scale_like), size, block)


def _by_chunks(gradient: Gradient, needs: Needs, scale_like: Tensor, size: int) -> Found:
    matrix, x = gradient.matrix, gradient.matrix.inputs.x
    memory = chunk_of_gradient(
        x, min(size, matrix.size.rows), matrix.size.columns, matrix.recipe.dtype
    )
    steps = _steps(gradient, needs, size)
    totals = GradientTotals(gradient, needs, len(steps) == 1)
    count = sum(sum(step.parts) for step in steps) if needs.scale else 0
    of_scale = ScaleParts(gradient.given.wide, 0, count, gradient.given.wide)  # dummy pointers
    total = None
    if needs.scale:
        total = torch.empty_like(scale_like)
        of_scale = of_scale._replace(part=x.new_empty(count, dtype=torch.float64), total=total)
    for step in steps:
        g = memory if memory.shape[0] == step.rows else memory[: step.rows]
        of_scale = _run(gradient, needs, totals, of_scale, step, g, step is steps[-1])
    return Found(*totals.products(), total, *totals.sums())


def _steps(gradient: Gradient, needs: Needs, size: int) -> list[Step]:
    """The chunks in their order."""
    matrix, x = gradient.matrix, gradient.matrix.inputs.x
    (rows, columns), found = matrix.size, []
    kept_rows = min(rows, gradient.kept.shape[0])
    for start, stop, is_kept in ((0, kept_rows, True), (kept_rows, rows, False)):
        tile = gradient.tile_of(is_kept)
        for first in range(start, stop, size):
            count = min(size, stop - first)
            tiles = whole(count, tile.BM) * whole(columns, tile.BN)
            if is_kept:
                by_product = whole(count, row_tile(x.shape[1]).ROWS) if needs.scale else 0
                parts = (0, tiles, 0, by_product)
            elif gradient.is_hopper:
                by_hopper = hopper.launches().gradient_parts(count, columns, x.device)
                parts = (by_hopper, 0, min(EXACT_PROGRAMS, tiles), 0)
            else:
                parts = (0, tiles, min(EXACT_PROGRAMS, tiles), 0)
            found.append(Step(first, count, is_kept, parts))
    return found


def _run(
    gradient: Gradient, needs: Needs, totals: GradientTotals, of_scale: ScaleParts, step: Step,
    g: Tensor, is_last: bool,
) -> ScaleParts:  # fmt: skip
    """One chunk; returns where the next chunk's parts begin."""
    by_hopper, by_trusted, by_exact, by_product = step.parts
    if by_hopper:
        hopper.launches().store_gradient(
            gradient.matrix, gradient.numbers, gradient.terms, gradient.given, step.first, g,
            of_scale.part, of_scale.first, is_loss=gradient.is_loss, count=gradient.terms_count,
        )  # fmt: skip
        of_scale = of_scale._replace(first=of_scale.first + by_hopper)
    sums = totals.new_sums(g, step.is_kept)
    for by_tiles, is_exact in ((by_trusted, False), (by_exact, True)):
        form = Form(
            step.is_kept, is_exact, needs.sums, needs.scale, is_last and is_exact,
            gradient.is_loss, gradient.needs_factor, gradient.terms_count,
        )  # fmt: skip
        if by_tiles:
            _store_gradient(gradient, g, step.first, by_tiles, sums, of_scale, form)
            of_scale = of_scale._replace(first=of_scale.first + by_tiles)
    totals.add(step.first, g, sums, of_scale, step.is_kept, is_last)
    return of_scale._replace(first=of_scale.first + by_product)


def _store_gradient(
    gradient: Gradient, g: Tensor, first: int, programs: int, sums: BiasSums, of_scale: ScaleParts,
    form: Form,
) -> None:  # fmt: skip
    """G of the rows from `first` on, and its partial sums."""
    matrix, tile = gradient.matrix, gradient.tile_of(form.HAS_KEPT)
    kept, settings = gradient.kept if form.HAS_KEPT else g, matrix.settings(tile)
    narrow = matrix.settings(tile._replace(BN=EXACT_COLUMNS, BK=EXACT_DEPTH))["TILE"]
    store_gradient_kernel[(programs,)](
        *matrix.operands(tile), gradient.numbers, gradient.terms, matrix.ids, kept, g, sums,
        of_scale, gradient.given, Chunk(first, g.shape[0]), matrix.size,
        matrix.recipe.strides._replace(out=g.stride(0), kept=gradient.kept.shape[1]),
        SIDES=matrix.recipe.sides, FORM=form, NARROW=narrow, **settings,
    )  # fmt: skip
