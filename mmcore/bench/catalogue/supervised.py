"""Several positives: SupCon, UniCL, MIL-NCE."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.draw import Draw, classes_of_four
from mmcore.bench.catalogue.formulas import identity, masked, same, several_positives
from mmcore.bench.catalogue.packages import metric_learning_losses, temperature
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant

FOUR_OF_EACH = "four of each class"

# SupCon


def sup_con(x: Tensor, label: Tensor, scale: Tensor) -> Tensor:
    """Each row against all others, of which those of its label are positives."""
    others = ~identity(x)
    return several_positives(masked(scale * (x @ x.T), others), same(label, label) & others)


def classes(draw: Draw) -> Arguments:
    """Rows in classes; one is alone in its own, some are in none."""
    label = draw.integers(-1, 20)
    label[0] = 99
    return {"x": draw.sides()[0], "label": label, "scale": draw.scalar_scale()}


def metric_learning_sup_con() -> Loss:
    """SupConLoss, which normalises once more."""
    losses = metric_learning_losses()
    return lambda x, label, scale: losses.SupConLoss(temperature=temperature(scale))(x, label)


SUP_CON = Row(
    functional.sup_con_loss,
    nn.SupConLoss,
    sup_con,
    classes,
    (
        Variant(),
        Variant(
            FOUR_OF_EACH,
            inputs=lambda draw: {"label": classes_of_four(draw.rows)},
            title="sup_con",
            peers={"pytorch-metric-learning": metric_learning_sup_con},
        ),
    ),
    products=2,
)

# UniCL


def unicl(
    x: Tensor,
    y: Tensor,
    row_label: Tensor,
    col_label: Tensor,
    scale: Tensor,
    *,
    row_group: Tensor | None = None,
    col_group: Tensor | None = None,
) -> Tensor:
    """Both ways, positives where labels are equal; of equal groups only positives count."""
    logits, positive = scale * (x @ y.T), same(row_label, col_label)
    if row_group is not None and col_group is not None:
        logits = masked(logits, ~same(row_group, col_group) | positive)
    return (several_positives(logits, positive) + several_positives(logits.T, positive.T)) / 2


def labelled(draw: Draw) -> Arguments:
    """Two sides with labels of their own, some of which the other side lacks."""
    x, y = draw.sides()
    labels = {"row_label": draw.integers(-1, 9), "col_label": draw.integers(-1, 15)}
    return {"x": x, "y": y, **labels, "scale": draw.scalar_scale()}


def four_of_each(draw: Draw) -> Arguments:
    """The same four rows of a class on both sides."""
    return {"row_label": classes_of_four(draw.rows), "col_label": classes_of_four(draw.rows)}


def groups(draw: Draw, smallest: int) -> Arguments:
    """Groups on both sides, from the smallest up to 4."""
    return {
        "row_group": draw.integers(smallest, 5),
        "col_group": draw.integers(smallest, 5),
    }


def groups_of_eight(draw: Draw) -> Arguments:
    """Two classes to a group."""
    group = torch.arange(draw.rows) // 8
    return four_of_each(draw) | {"row_group": group, "col_group": group}


def unicl_in_torch() -> Loss:
    """As one writes it where every row has four positives."""

    def one_way(logits: Tensor, positive: Tensor) -> Tensor:
        return (logits.logsumexp(1) - torch.where(positive, logits, 0.0).sum(1) / 4).mean()

    def loss(x: Tensor, y: Tensor, row_label: Tensor, col_label: Tensor, scale: float) -> Tensor:
        logits, positive = scale * x @ y.T, row_label[:, None] == col_label
        return (one_way(logits, positive) + one_way(logits.T, positive.T)) / 2

    return loss


UNICL = Row(
    functional.unicl_loss,
    nn.UniClLoss,
    unicl,
    labelled,
    (
        Variant(),
        Variant("groups", inputs=lambda draw: groups(draw, -1)),
        Variant("one group, no negatives", inputs=lambda draw: groups(draw, 4)),
        Variant("groups of eight", inputs=groups_of_eight, is_large=True),
        Variant(
            FOUR_OF_EACH,
            inputs=four_of_each,
            title="unicl",
            peers={"torch-eager": unicl_in_torch},
        ),
    ),
)

# MIL-NCE


def mil_nce(x: Tensor, y: Tensor, row_label: Tensor, col_label: Tensor, scale: Tensor) -> Tensor:
    """The share of all positives together; rows without any are left out."""
    positive = same(row_label, col_label)
    some = positive.any(1)
    logits = (scale * (x @ y.T))[some]
    return (logits.logsumexp(1) - masked(logits, positive[some]).logsumexp(1)).mean()


def mil_nce_in_torch() -> Loss:
    """As one writes it where every row has a positive."""

    def loss(x: Tensor, y: Tensor, row_label: Tensor, col_label: Tensor, scale: float) -> Tensor:
        logits = scale * x @ y.T
        candidates = masked(logits, row_label[:, None] == col_label).logsumexp(1)
        return (logits.logsumexp(1) - candidates).mean()

    return loss


MIL_NCE = Row(
    functional.mil_nce_loss,
    nn.MilNceLoss,
    mil_nce,
    labelled,
    (
        Variant(),
        Variant(
            FOUR_OF_EACH,
            inputs=four_of_each,
            title="mil_nce",
            peers={"torch-eager": mil_nce_in_torch},
        ),
    ),
)

ROWS = (SUP_CON, UNICL, MIL_NCE)
