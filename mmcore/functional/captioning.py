"""Cross-entropy over a vocabulary, and CoCa, which adds it to CLIP."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.contrastive import clip_loss
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, mean_of, mean_products
from mmcore.functional.similarity import softmax_similarity
from mmcore.functional.temperature import scale_not_temperature


@tells_ranks
def linear_cross_entropy_loss(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of a linear layer's outputs, such as next words over a vocabulary.

    Equivalent, without ever storing the (N, V) logits, to ::

        logits = F.linear(x, weight, bias).flatten(0, -2)
        F.cross_entropy(
            logits, target.flatten(), ignore_index=ignore_index, label_smoothing=label_smoothing
        )

    but for a batch whose targets are all ignored: the loss is 0 with gradient 0, not NaN.

    Args:
        x: (..., D), any floating-point dtype.
        weight: (V, D), in the dtype of `x`: a row for each class.
        target: (...) integers: the class of each row of `x`, in [0, V), or `ignore_index`.
        bias: (V,) or None, in the dtype of `x` or float32.
        ignore_index: rows of this target take no part, such as padding. -100 as in
            ``F.cross_entropy``, so that targets made for it serve; a class, such as the padding's
            own, may be named as well.
        label_smoothing: in [0, 1), as in ``F.cross_entropy``: how much of each target is spread
            evenly over all classes.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs): the mean over rows that are not ignored.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, there are no rows, a
            target is out of range, or `label_smoothing` is. On a GPU a target out of range is not
            seen by the host: it gives NaN.

    Memory:
        As `softmax_similarity`, and the targets once more. Rows that are ignored are computed too:
        dropping them would make the host wait for the device.

    Reference:
        Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024,
        https://arxiv.org/abs/2411.09009, for the same without the logits.

    Example:
        >>> import torch, mmcore
        >>> x, weight = torch.randn(2, 5, 8), torch.randn(100, 8)
        >>> target = torch.randint(100, (2, 5))
        >>> loss = mmcore.functional.linear_cross_entropy_loss(x, weight, target)
        >>> logits = x @ weight.T
        >>> torch.allclose(loss, torch.nn.functional.cross_entropy(logits.mT, target))
        True
    """
    ranks = as_ranks(process_group, gradients, exchange)
    x, weight, target, bias = _checked_layer("x", x, weight, target, bias, ranks)
    label_smoothing = check.check_fraction("label_smoothing", label_smoothing)
    ignore_index = check.as_integer("ignore_index", ignore_index)
    return _cross_entropy(x, weight, target, bias, ignore_index, label_smoothing, ranks, backend)


@scale_not_temperature
@tells_ranks
def coca_loss(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    contrastive_weight: float = 1.0,
    caption_weight: float = 2.0,
    pad_id: int = 0,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """CoCa: CLIP of images and texts, and the captions' words by a decoder that sees the images.

    Equivalent, without ever storing the logits of either, to ::

        logits = F.linear(hidden, weight, bias)
        caption = F.cross_entropy(logits.mT, target, ignore_index=pad_id)
        contrastive_weight * clip_loss(x, y, scale) + caption_weight * caption

    Args:
        x, y: (N, D), of images and texts, as `clip_loss` takes them.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        hidden: (N, L, E), the decoder's outputs before its last layer; any (..., E).
        weight: (V, E), that layer's weight, in the dtype of `hidden`.
        target: (N, L) integers, the words to come; (...) as `hidden`.
        bias: (V,) or None, that layer's bias, in the dtype of `hidden` or float32.
        contrastive_weight, caption_weight: at least 0; as in the paper by default.
        pad_id: the word that fills captions up: it takes no part as a target.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs). open_clip's ``CoCaLoss`` returns the two terms
        instead of their sum, and takes the logits.

    Raises:
        TypeError, ValueError: as `clip_loss` and `linear_cross_entropy_loss`, or a weight is below
            0.

    Memory:
        As `softmax_similarity`, twice.

    Reference:
        Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation Models, 2022,
        https://arxiv.org/abs/2205.01917

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> hidden, vocabulary = torch.randn(4, 7, 16), torch.randn(100, 16)
        >>> words = torch.randint(100, (4, 7))
        >>> mmcore.functional.coca_loss(x, y, 14.0, hidden, vocabulary, words).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("coca_loss", process_group)
    hidden, weight, target, bias = _checked_layer("hidden", hidden, weight, target, bias, ranks)
    contrastive_weight = check.check_not_negative("contrastive_weight", contrastive_weight)
    caption_weight = check.check_not_negative("caption_weight", caption_weight)
    pad_id = check.as_integer("pad_id", pad_id)
    _check_classes(target, target != pad_id, weight.shape[0], pad_id)
    contrastive = clip_loss(x, y, scale, process_group=ranks, backend=backend)
    caption = _cross_entropy(hidden, weight, target, bias, pad_id, 0.0, ranks, backend)
    return contrastive_weight * contrastive + caption_weight * caption


def _cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, ignore_index: int,
    label_smoothing: float, ranks: Ranks | None, backend: str | None,
) -> Tensor:  # fmt: skip
    rows, target = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    is_there = target != ignore_index
    _check_classes(target, is_there, weight.shape[0], ignore_index)
    # −1 would be no class at all to the op: what is below 0 without being ignored is out of range.
    known = torch.where(target < 0, weight.shape[0], target)
    if ranks is not None:
        ranks.rows("linear_cross_entropy_loss", x=rows, weight=weight)
    if rows.shape[0] == 0:
        return as_loss(mean_of(_no_rows(x, weight, bias), is_there, ranks), x)
    statistics = softmax_similarity(
        rows, weight, col_bias=bias, target=torch.where(is_there, known, -1), columns=False,
        backend=backend,
    )  # fmt: skip
    positive = statistics.row_pos
    if label_smoothing:
        mean = _mean_logits(rows, weight, bias)
        positive = (1 - label_smoothing) * positive + label_smoothing * mean
    return as_loss(mean_of(statistics.row_lse - positive, is_there, ranks), x)


def _no_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """No losses, with gradients of 0: the others wait for this process's."""
    nothing = x.sum() + weight[:0].sum() + (0 if bias is None else bias[:0].sum())
    return nothing.double().expand(1)[:0]


def _mean_logits(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    mean = mean_products(rows, weight)
    return mean if bias is None else mean + bias.double().mean()


def _checked_layer(
    name: str, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, ranks: Ranks | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The last four, of dtypes that go together."""
    x, weight = operands.multiplied(x, weight)
    check.check_tensor(name, x)
    if x.ndim == 0 or x.shape[-1] == 0 or (x.numel() == 0 and ranks is None):
        raise ValueError(
            f"{name} must have at least 1 row and 1 column, got shape {tuple(x.shape)}"
        )
    check.check_matrix("weight", weight)
    check.check_rows("weight", weight)
    check.check_columns("weight", weight, x.shape[-1], name)
    check.check_matches("weight", weight, x, name)
    bias = check.check_parameter("bias", bias, weight.shape[0], x)
    target = check.as_integers("target", target)
    if target.shape != x.shape[:-1]:
        raise ValueError(
            f"target must have shape {tuple(x.shape[:-1])} to match {name}, "
            f"got {tuple(target.shape)}"
        )
    check.check_device("target", target, x, name)
    return x, weight, target, bias


def _check_classes(target: Tensor, is_there: Tensor, classes: int, ignore_index: int) -> None:
    if not (check.has_values(target) and check.has_values(is_there)):
        return
    outside = target[is_there & ((target < 0) | (target >= classes))]
    if outside.numel():
        raise ValueError(
            f"target must be in [0, {classes}) or ignore_index {ignore_index}, "
            f"got {outside[0].item()}"
        )
