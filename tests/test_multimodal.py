"""multimodal_loss: which pairs, which rows, which weights; and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from machines import values_seen
from torch import Tensor

from mmcore import functional
from mmcore.functional import clip_loss, multimodal_loss

pytestmark = pytest.mark.objective

NAMES = ("image", "text", "audio")


def unit_rows(rows: int = 12) -> Tensor:
    return F.normalize(torch.randn(rows, 8), dim=1)


def three() -> dict[str, Tensor]:
    return {name: unit_rows().requires_grad_() for name in NAMES}


PAIRS = {
    "all": [("image", "text"), ("image", "audio"), ("text", "audio")],
    "text": [("text", "image"), ("text", "audio")],
}


def test_pairs_may_be_listed() -> None:
    z = three()
    for name, pairs in PAIRS.items():
        assert torch.equal(
            multimodal_loss(z, 7.0, pairs=name), multimodal_loss(z, 7.0, pairs=pairs)
        )


def test_rows_of_no_other_modality_get_no_gradient(backend: str) -> None:
    ids = {name: torch.arange(12) + 4 * i for i, name in enumerate(NAMES)}
    z = three()
    gradients = torch.autograd.grad(multimodal_loss(z, 5.0, ids=ids), list(z.values()))
    assert [g.abs().sum(1).bool().tolist() for g in gradients] == [
        4 * [False] + 8 * [True], 12 * [True], 8 * [True] + 4 * [False],
    ]  # fmt: skip


def test_equal_ids_copy_nothing() -> None:
    z = three()
    ids = dict.fromkeys(z, torch.arange(12))
    seen: list[Tensor] = []

    def objective(x: Tensor, y: Tensor, scale: float, *, backend: str | None) -> Tensor:
        seen.extend([x, y])
        return clip_loss(x, y, scale, backend=backend)

    multimodal_loss(z, 5.0, ids=ids, objective=objective)
    assert all(any(each is own for own in z.values()) for each in seen)


Z = {name: unit_rows() for name in ("image", "text")}
IDS = dict.fromkeys(Z, torch.arange(12))
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: multimodal_loss(list(Z.values()), 5.0), TypeError, "features must be a mapping of names, got list"),
    (lambda: multimodal_loss({"image": Z["image"]}, 5.0), ValueError, "features must have at least 2 modalities, got 1"),
    (lambda: multimodal_loss({**Z, "audio": unit_rows()[:, :4]}, 5.0), ValueError, "features['audio'] must have 8 columns to match features['image'], got 4"),
    (lambda: multimodal_loss({**Z, "audio": unit_rows().double()}, 5.0), TypeError, "features['audio'] must have dtype float32"),
    (lambda: multimodal_loss({**Z, "audio": unit_rows(5)}, 5.0), ValueError, "features['audio'] must have 12 rows to match 'image' where no ids are given, got 5"),
    (lambda: multimodal_loss(Z, 5.0, pairs="audio"), ValueError, "pairs must name modalities of features ('image', 'text'), got 'audio'"),
    (lambda: multimodal_loss(Z, 5.0, pairs=[]), ValueError, "pairs must name at least one pair, got none"),
    (lambda: multimodal_loss(Z, 5.0, pairs=[("image", "image")]), ValueError, "pairs must be of two modalities, each pair once"),
    (lambda: multimodal_loss(Z, 5.0, weights={}), ValueError, "weights must be of the pairs, got none of [('image', 'text')]"),
    (lambda: multimodal_loss(Z, 5.0, weights={("image", "text"): 0.0}), ValueError, "weights must be above 0 for at least one pair"),
    (lambda: multimodal_loss(Z, 5.0, weights={("image", "text"): -1.0}), ValueError, "weights[('image', 'text')] must be finite and at least 0, got -1.0"),
    (lambda: multimodal_loss(Z, 5.0, weights={("image", "text"): math.nan}), ValueError, "weights[('image', 'text')] must be finite and at least 0, got nan"),
    (lambda: multimodal_loss(Z, {}), ValueError, "scale must be of the pairs, got none of [('image', 'text')], and of []"),
    (lambda: multimodal_loss(Z, 5.0, {("image", "text"): 0.0, ("text", "image"): 0.0}), ValueError, "bias must be of the pairs, got none of [], and of [('text', 'image')]"),
    (lambda: multimodal_loss(Z, 5.0, pairs=[("image",)]), ValueError, "pairs must be of two names each, got ('image',)"),
    (lambda: multimodal_loss(Z, 5.0, pairs=["image"]), ValueError, "pairs must be of two names each, got 'image'"),
    (lambda: multimodal_loss({**Z, "text": unit_rows(0)}, 5.0, ids={**IDS, "text": IDS["text"][:0]}), ValueError, "features['text'] must have at least 1 row, got shape (0, 8)"),
    (lambda: multimodal_loss(Z, 5.0, ids={"image": IDS["image"]}), ValueError, "ids must be of the modalities ['image', 'text'], got ['image']"),
    (lambda: multimodal_loss(Z, 5.0, ids={**IDS, "text": IDS["text"] // 2}), ValueError, "ids['text'] must not repeat, got 0 more than once"),
    (lambda: multimodal_loss(Z, 5.0, ids={**IDS, "text": IDS["text"] + 99}), ValueError, "ids must have rows in common for the pair ('image', 'text'), got none"),
    (lambda: multimodal_loss(Z, 5.0, ids={**IDS, "text": IDS["text"] > 0}), TypeError, "ids['text'] must be of an integer dtype up to int64, got bool"),
    (lambda: multimodal_loss(Z, 5.0, objective="triplet"), ValueError, "objective must be one of 'clip', 'siglip', got 'triplet'"),
    (lambda: functional.symile_loss({**Z, "audio": unit_rows(5)}, 5.0), ValueError, "features must have as many rows in every modality"),
    (lambda: clip_loss(*Z.values(), 5.0, label_smoothing=1.0), ValueError, "label_smoothing must be in [0, 1), got 1.0"),
    (lambda: clip_loss(*Z.values(), 5.0, label_smoothing="a"), TypeError, "label_smoothing must be a number, got str"),
    (lambda: clip_loss(*Z.values(), 5.0, label_smoothing=0.1, group=IDS["text"]), ValueError, "label_smoothing must be 0 where group is given"),
    (lambda: clip_loss(*Z.values(), 5.0, direction="up"), ValueError, "direction must be one of 'both', 'rows', 'columns', got 'up'"),
    (lambda: clip_loss(*Z.values(), 5.0, weight=torch.ones(3)), ValueError, "weight must have shape (12,), got (3,)"),
    pytest.param(lambda: clip_loss(*Z.values(), 5.0, weight=torch.zeros(12)), ValueError, "weight must be above 0 for at least one row, got 0 for all", marks=values_seen),
    pytest.param(lambda: clip_loss(*Z.values(), 5.0, weight=-torch.ones(12)), ValueError, "weight must be at least 0, got -1.0", marks=values_seen),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, margin=-1.0), ValueError, "margin must be finite and at least 0, got -1.0"),
    (lambda: functional.nt_xent_loss(Z["image"], unit_rows(5), 5.0), ValueError, "second must have 12 rows to match first, got 5"),
    (lambda: functional.dcl_loss(*Z.values(), 5.0, sigma=0.0), ValueError, "sigma must be finite and above 0, got 0.0"),
    (lambda: functional.hard_negative_loss(*Z.values(), 5.0, hardness=-1.0), ValueError, "hardness must be finite and at least 0, got -1.0"),
    (lambda: functional.hard_negative_loss(unit_rows(1), unit_rows(1), 5.0), ValueError, "x must have at least 2 rows"),
    (lambda: functional.hard_negative_loss(*Z.values(), 5.0, positive_prior=1.0), ValueError, "positive_prior must be in [0, 1), got 1.0"),
    (lambda: functional.uniformity_loss(unit_rows(1)), ValueError, "x must have at least 2 rows, got 1"),
    (lambda: functional.uniformity_loss(unit_rows(), temperature=0.0), ValueError, "temperature must be finite and above 0, got 0.0"),
    (lambda: functional.alignment_loss(Z["image"], unit_rows(5)), ValueError, "y must have 12 rows to match x, got 5"),
    (lambda: functional.sup_con_loss(Z["image"], torch.arange(5), 5.0), ValueError, "label must have shape (12,) to match the rows of x, got (5,)"),
    (lambda: functional.unicl_loss(*Z.values(), IDS["text"], IDS["text"], 5.0, row_group=IDS["text"]), ValueError, "col_group must be given together with the other side's, got None"),
    (lambda: functional.unicl_loss(*Z.values(), IDS["text"], IDS["text"], 5.0, col_group=IDS["text"]), ValueError, "row_group must be given together with the other side's, got None"),
    (lambda: functional.unicl_loss(*Z.values(), IDS["text"], IDS["text"], 5.0, row_group=torch.arange(5), col_group=IDS["text"]), ValueError, "row_group must have shape (12,) to match the rows of x, got (5,)"),
    (lambda: clip_loss(*Z.values(), 5.0, group=torch.arange(5)), ValueError, "group must have shape (12,) to match the rows of x, got (5,)"),
    (lambda: functional.info_nce_loss(Z["image"], unit_rows(5), 5.0), ValueError, "target must be given where query has more rows than key: got 12 and 5"),
    (lambda: functional.info_nce_loss(Z["image"], unit_rows()[:, :4], 5.0), ValueError, "key must have 8 columns to match query, got 4"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, target=torch.arange(5)), ValueError, "target must have shape (12,) to match the rows of query, got (5,)"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, key_group=IDS["text"]), ValueError, "query_group must be given together with the other side's, got None"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, query_group=IDS["text"]), ValueError, "key_group must be given together with the other side's, got None"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, log_q=torch.zeros(5)), ValueError, "log_q must have shape (12,), got (5,)"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, queue=unit_rows(7), log_q=torch.zeros(12)), ValueError, "log_q must have shape (19,), got (12,)"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, queue=unit_rows(7), query_group=IDS["text"], key_group=IDS["text"]), ValueError, "key_group must have shape (19,) to match the rows of key and queue, got (12,)"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, queue=unit_rows()[:, :4]), ValueError, "queue must have 8 columns to match query, got 4"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, queue=unit_rows()[:0]), ValueError, "queue must have at least 1 row, got shape (0, 8)"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, queue=unit_rows().double()), TypeError, "queue must have dtype float32 to match query, got float64"),
    (lambda: functional.info_nce_loss(*Z.values(), 5.0, log_q=0.5), TypeError, "log_q must be a tensor, got float"),
    (lambda: functional.multiple_negatives_ranking_loss(Z["image"], [], 5.0), ValueError, "documents must begin with the positives, got none"),
    (lambda: functional.multiple_negatives_ranking_loss(Z["image"], Z["text"], 5.0), TypeError, "documents must be a sequence of tensors, got one Tensor"),
    (lambda: functional.multiple_negatives_ranking_loss(Z["image"], [unit_rows(5)], 5.0), ValueError, "documents[0] must have shape (12, 8) to match query, got (5, 8)"),
    (lambda: functional.multiple_negatives_ranking_loss(Z["image"], [Z["text"]], 5.0, directions=["doc_to_doc"]), ValueError, "directions must have 'query_to_doc', and each once, got ('doc_to_doc',)"),
    (lambda: functional.multiple_negatives_ranking_loss(Z["image"], [Z["text"]], 5.0, directions=["up"]), ValueError, "directions must be one of 'query_to_doc'"),
    (lambda: functional.multiple_negatives_ranking_loss(Z["image"], [Z["text"]], 5.0, directions=["query_to_doc", "doc_to_doc"], partition="per_direction"), ValueError, "directions must each hold the positive where partition is 'per_direction'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_rows_without_any_positive_take_no_part(backend: str) -> None:
    x, y = unit_rows().requires_grad_(), unit_rows()
    none = torch.full((12,), -1)
    for loss in (
        functional.sup_con_loss(x, none, 5.0),
        functional.unicl_loss(x, y, none, none, 5.0),
        functional.mil_nce_loss(x, y, none, none, 5.0),
        functional.info_nce_loss(x, y, 5.0, target=none),
    ):
        assert loss == 0
        (gradient,) = torch.autograd.grad(loss, x)
        assert torch.equal(gradient, torch.zeros_like(x))


def test_a_recording_has_no_ids() -> None:
    """Catches rows that torch.jit.trace matches once and for all."""
    leaves = (torch.randn(4, 8), torch.randn(4, 8), torch.arange(4))

    def loss(image: torch.Tensor, text: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        features = {"image": image, "text": text}
        return multimodal_loss(features, 5.0, ids={"image": ids, "text": ids})

    with pytest.raises(RuntimeError, match=r"nothing that traces a call .*jit\.trace"):
        torch.jit.trace(loss, leaves)
