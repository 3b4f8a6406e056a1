"""Classes by the embeddings of what describes them, such as sentences with their names."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.analysis.features import as_labels, as_matrix, pieces
from mmcore.functional import arguments as check
from mmcore.functional.projection import l2_normalize
from mmcore.functional.similarity import softmax_similarity
from mmcore.retrieval import arrays, topk


class ZeroShot(NamedTuple):
    """What `zero_shot_classify` returns: for each row its likeliest classes, the best first.

    Arrays of the library of the features, on their device; (N, k) each.

    Example:
        >>> import torch, mmcore
        >>> prompts, classes = torch.eye(3), torch.tensor([0, 1, 1])
        >>> found = mmcore.analysis.zero_shot_classify(torch.eye(3), prompts, classes)
        >>> found.classes[:, 0].tolist()
        [0, 1, 1]
    """

    classes: Any  # int64; −1 for a row with NaN
    probabilities: Any  # float32, or float64 for float64; NaN for a row with NaN


def zero_shot_classify(
    features: Any, prompts: Any, prompt_class: Any, *, scale: float = 100.0, k: int = 1
) -> ZeroShot:
    """The classes whose prompts are nearest: classification without a single labelled example.

    Equivalent, with the (N, C) logits never stored, to ::

        prompts = F.normalize(prompts)
        weight = torch.stack([prompts[prompt_class == c].mean(0) for c in range(C)])
        logits = scale * F.normalize(features) @ F.normalize(weight).T
        probabilities, classes = logits.softmax(1).topk(k)

    as CLIP does with several prompts for each class.

    Args:
        features: (N, D), such as of images: a tensor, a NumPy array (a mapped file too) or any with
            `__dlpack__`, any floating-point dtype, normalised or not.
        prompts: (P, D), such as of sentences, in the same space; normalised or not.
        prompt_class: (P,) integers: the class of each prompt, from 0 to C − 1, each at least once.
        scale: at least 0, the inverse temperature by which the model was trained: exp of its logit
            scale. It does not change which class is first.
        k: how many classes for each row, from 1 to C.

    Returns:
        `ZeroShot`. Classes are ordered by their cosine in float64, and of equal ones the lower
        comes first, so that the result does not depend on how features are cut. The probability
        is that of the softmax over all classes. A row of zeros has the same for all.

    Raises:
        TypeError, ValueError: shapes or devices do not fit together, a class has no prompt, a
            prompt has NaN or inf, or an option is out of range.

    Memory:
        The result, O(C·D), and 16 MiB for the features under way.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
        https://arxiv.org/abs/2103.00020

    Example:
        >>> import torch, mmcore
        >>> images, prompts = torch.randn(100, 8), torch.randn(30, 8)  # ten classes, three prompts
        >>> classes = torch.arange(30) // 3
        >>> found = mmcore.analysis.zero_shot_classify(images, prompts, classes, k=5)
        >>> found.probabilities.shape
        torch.Size([100, 5])
    """
    rows, sentences = as_matrix("features", features), as_matrix("prompts", prompts)
    check.check_columns("prompts", sentences, rows.shape[1], "features")
    check.check_device("prompts", sentences, rows, "features")
    classes = as_labels("prompt_class", prompt_class, sentences, "prompts")
    check.check_not_negative("scale", scale)
    weight = _class_weights(sentences, classes)
    k = check.check_count("k", k, weight.shape[0])
    found = [_classify(piece, weight, scale, k) for piece in pieces(rows, rows.shape[1])]
    return ZeroShot(*(arrays.like(features, torch.cat(part)) for part in zip(*found, strict=True)))


def _class_weights(prompts: Tensor, classes: Tensor) -> Tensor:
    """The mean of the unit prompts of each class, of unit length again; float64."""
    check.check_rows("prompts", prompts)
    is_finite = prompts.isfinite().all(1)
    if not bool(is_finite.all()):
        row = int((~is_finite).nonzero()[0])
        raise ValueError(f"prompts must be finite, got NaN or inf in row {row}")
    counts = classes.bincount()
    if not bool((counts > 0).all()):
        missing = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"prompt_class must name each class from 0 to {len(counts) - 1}, got none for {missing}"
        )
    # Ordered by class, so that each sum is over its prompts in their order, on every device.
    order = classes.argsort(stable=True)
    units = F.normalize(prompts.double())[order].split(counts.tolist())
    return F.normalize(torch.stack([unit.mean(0) for unit in units]))


def _classify(piece: Tensor, weight: Tensor, scale: float, k: int) -> tuple[Tensor, Tensor]:
    weight = weight.to(piece.dtype)
    found = topk(piece, weight, k, metric="cosine", score_dtype="float64", progress=False)
    if not len(piece):
        return found.indices, found.scores.to(piece.dtype)
    nobody = torch.full((len(piece),), -1, device=piece.device)
    with torch.no_grad(), torch.autocast(piece.device.type, enabled=False):
        units = l2_normalize(piece)
        lse = softmax_similarity(units, weight, scale, target=nobody, columns=False).row_lse
    # The sum comes from rounded products: it may be below its largest term by a rounding.
    probabilities = (scale * found.scores - lse[:, None]).exp().clamp(max=1)
    return found.indices, probabilities.to(piece.dtype)
