"""Captioning: cross-entropy over a vocabulary, and CoCa."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.contrastive import clip, two_sides
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.packages import open_clip_losses
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant

# Cross-entropy over a vocabulary


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy against explicit soft targets, without F.cross_entropy."""
    logits, target = x.flatten(0, -2) @ weight.T, target.flatten()
    if bias is not None:
        logits = logits + bias
    kept, target = logits[target != ignore_index], target[target != ignore_index]
    hard = F.one_hot(target, len(weight)).to(logits.dtype)
    wanted = (1 - label_smoothing) * hard + label_smoothing / len(weight)
    return -(wanted * kept.log_softmax(1)).sum(1).mean()


def words(draw: Draw) -> Arguments:
    """Logits of up to the draw's scale; targets that lie near, so that rows have converged."""
    x, y = draw.sides()
    weight = torch.cat([y, draw.unit(40)])
    return {"x": draw.scale * x, "weight": weight, "target": torch.arange(draw.rows)}


def padded(draw: Draw, padding: int) -> Arguments:
    """Some of the targets are padding; the layer has a bias."""
    target = torch.arange(draw.rows)
    target[::7] = padding
    return {"target": target, "bias": 0.1 * draw.normal(draw.rows + 40)}


def two_words_a_row(draw: Draw) -> Arguments:
    """A vocabulary twice as large as the batch."""
    return {"weight": draw.unit(2 * draw.rows), "target": torch.arange(draw.rows)}


def plain_variant(padding: int, smoothing: float) -> Variant:
    """The options that change the formula."""
    return Variant(
        f"padding {padding}, smoothing {smoothing}",
        {"ignore_index": padding, "label_smoothing": smoothing},
        lambda draw: padded(draw, padding),
        axes={"padding": padding, "smoothing": smoothing},
    )


LINEAR_CROSS_ENTROPY = Row(
    functional.linear_cross_entropy_loss,
    nn.LinearCrossEntropyLoss,
    linear_cross_entropy,
    words,
    (
        Variant(
            "two words a row",
            inputs=two_words_a_row,
            axes={"padding": None, "smoothing": None},
            title="linear_cross_entropy, V = {twice:,}",
            products=8,
            columns=2,
            peers={
                "torch-eager": lambda: (
                    lambda x, weight, target: F.cross_entropy(F.linear(x, weight), target)
                ),
                "torch-linear-cross-entropy": lambda: (
                    lambda x, weight, target: F.linear_cross_entropy(x, weight, target)
                ),
            },
        ),
        *(plain_variant(*each) for each in product((-100, 0), (0.0, 0.1))),
    ),
)

# CoCa


def coca(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    contrastive_weight: float = 1.0,
    caption_weight: float = 2.0,
    pad_id: int = 0,
) -> Tensor:
    """CLIP's loss and the captions' cross-entropy, weighted."""
    captions = linear_cross_entropy(hidden, weight, target, bias, ignore_index=pad_id)
    return contrastive_weight * clip(x, y, scale) + caption_weight * captions


def captioned(draw: Draw) -> Arguments:
    """Seven words of each caption, of a vocabulary of 50."""
    target = draw.integers(0, 50, 7 * draw.rows).view(draw.rows, 7)
    hidden = draw.normal(draw.rows, 7, draw.width)
    decoder = {"hidden": hidden, "weight": draw.normal(50, draw.width), "target": target}
    return two_sides(draw) | decoder


def of_one_word(draw: Draw) -> Arguments:
    """One word of each caption, of a vocabulary twice as large as the batch."""
    hidden, target = draw.scale * draw.unit()[:, None], torch.arange(draw.rows)[:, None]
    return {"hidden": hidden, "weight": draw.unit(2 * draw.rows), "target": target}


def open_clip_coca() -> Loss:
    """CoCaLoss, which takes logits and returns two terms."""
    loss = open_clip_losses().CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)

    def both(
        x: Tensor, y: Tensor, scale: float, hidden: Tensor, weight: Tensor, target: Tensor
    ) -> Tensor:
        terms = loss(x, y, hidden @ weight.T, target, scale)
        found: Tensor = terms[0] + terms[1]
        return found

    return both


COCA = Row(
    functional.coca_loss,
    nn.CoCaLoss,
    coca,
    captioned,
    (
        Variant("sentences", peers={"open_clip": open_clip_coca}),
        Variant(
            "weights and a bias",
            {"contrastive_weight": 0.7, "caption_weight": 1.5},
            lambda draw: {"bias": draw.normal(50)},
        ),
        Variant(
            "one word each",
            inputs=of_one_word,
            title="coca, V = {twice:,}",
            columns=2,
            peers={"open_clip": open_clip_coca},
        ),
    ),
    products=12,
)

ROWS = (LINEAR_CROSS_ENTROPY, COCA)
