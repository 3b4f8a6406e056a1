"""More than two modalities in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional.contrastive import clip_loss
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, handed_on, tells_ranks
from mmcore.functional.reductions import as_loss
from mmcore.functional.sigmoid import siglip_loss
from mmcore.functional.temperature import scale_not_temperature

Pair = tuple[str, str]
Objective = Callable[..., Tensor]
OBJECTIVES: dict[str, Objective] = {"clip": clip_loss, "siglip": siglip_loss}
NO_IDS_IN_A_GRAPH = (
    "ids must be numbers that the host can read, and nothing that traces a call (torch.compile, "
    "export, make_fx, jit.trace) has them: they say how many rows two modalities share. Call "
    "multimodal_loss outside the graph, or select the shared rows there and give no ids"
)


@scale_not_temperature
@tells_ranks
def multimodal_loss(
    features: Mapping[str, Tensor],
    scale: float | Tensor | Mapping[Pair, float | Tensor],
    bias: float | Tensor | Mapping[Pair, float | Tensor] | None = None,
    *,
    pairs: str | Sequence[Pair] = "all",
    ids: Mapping[str, Tensor] | None = None,
    weights: Mapping[Pair, float] | None = None,
    objective: str | Objective = "clip",
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """One loss over several modalities: the weighted mean of an objective over pairs of them.

    Equivalent to ::

        losses = {(a, b): objective(features[a], features[b], scale, bias) for a, b in pairs}
        sum(weights[pair] * loss for pair, loss in losses.items()) / sum(weights.values())

    Args:
        features: the rows of each modality by its name, (N_m, D), all of one dtype.
        scale, bias: one for all pairs, or one for each pair by its names.
        pairs: ``"all"``; the name of an anchor, which is paired with every other modality; or a
            list of pairs of names.
        ids: (N_m,) integers for each modality: rows of equal ids are of the same thing, and rows
            whose id the other side lacks take no part in that pair. No id, of any value, may occur
            twice in a modality, on all processes of the group. Without them row i is of thing i in
            every modality.
        weights: at least 0 for each pair, not all 0; default 1.
        objective: ``"clip"``, ``"siglip"``, or a function of (x, y, scale, bias, backend=…). Where
            a group is given it also gets `process_group`, `gradients` and `exchange` by name.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: a modality, a scale or a weight is missing or unknown, sizes differ
            where no ids are given, an id occurs twice, a modality has no rows or a pair shares
            none, weights are below 0 or all 0; whatever the objective refuses.

    Memory:
        As the objective; where ids differ the rows that two modalities share are copied.

    With ids the host must know how many rows are shared: it waits for the device, and a graph that
    is traced (`torch.compile`, `torch.export`) cannot hold the call.

    Reference:
        Girdhar et al., ImageBind: One Embedding Space To Bind Them All, 2023,
        https://arxiv.org/abs/2305.05665 (an anchor); Guzhov et al., AudioCLIP, 2021,
        https://arxiv.org/abs/2106.13043 (all pairs).

    Example:
        >>> import torch, mmcore
        >>> names = ("image", "text", "audio")
        >>> features = {m: mmcore.functional.l2_normalize(torch.randn(4, 8)) for m in names}
        >>> everything = mmcore.functional.multimodal_loss(features, scale=14.0)
        >>> bound = mmcore.functional.multimodal_loss(features, scale=14.0, pairs="image")
        >>> everything.shape, bound.shape
        (torch.Size([]), torch.Size([]))
    """
    features = check.check_modalities(features)
    ranks = as_ranks(process_group, gradients, exchange)
    over = handed_on(process_group, gradients, exchange)
    for name, value in features.items() if ranks is None else ():
        check.check_rows(f"features[{name!r}]", value)
    chosen = _pairs(features, pairs)
    _check_rows_of_pairs(features, chosen, ids)
    for name, mapping in (("scale", scale), ("bias", bias)):
        if isinstance(mapping, Mapping):
            _check_pairs_of(name, mapping, chosen)
    weight_of = _weights(chosen, weights)
    function = _objective(objective)
    ordered = None if ids is None else _checked_ids(features, ids)
    _check_ids_of_ranks(features, ordered, ranks)
    total = next(iter(features.values())).new_zeros((), dtype=torch.float64)
    for pair in chosen:
        x, y = _shared_rows(features, ordered, pair, ranks)
        settings = [_of_pair(scale, pair)]
        if bias is not None:
            settings.append(_of_pair(bias, pair))
        loss = function(x, y, *settings, backend=backend, **over)
        total = total + weight_of[pair] * loss.double()
    return as_loss(total / sum(weight_of.values()), x)


def _pairs(features: Mapping[str, Tensor], pairs: str | Sequence[Pair]) -> list[Pair]:
    if isinstance(pairs, str):
        if pairs == "all":
            return list(combinations(features, 2))
        check.check_modality("pairs", pairs, features)
        return [(pairs, name) for name in features if name != pairs]
    unlike = [pair for pair in pairs if isinstance(pair, str) or len(pair) != 2]
    if unlike:
        raise ValueError(f"pairs must be of two names each, got {unlike[0]!r}")
    chosen = [(first, second) for first, second in pairs]
    if not chosen:
        raise ValueError("pairs must name at least one pair, got none")
    for name in (name for pair in chosen for name in pair):
        check.check_modality("pairs", name, features)
    repeated = [pair for pair in chosen if chosen.count(pair) > 1 or pair[0] == pair[1]]
    if repeated:
        raise ValueError(f"pairs must be of two modalities, each pair once, got {repeated[0]}")
    return chosen


def _check_rows_of_pairs(
    features: Mapping[str, Tensor], pairs: list[Pair], ids: Mapping[str, Tensor] | None
) -> None:
    for first, second in pairs if ids is None else ():
        x, y = features[first], features[second]
        if x.shape[0] != y.shape[0]:
            raise ValueError(
                f"features[{second!r}] must have {x.shape[0]} rows to match {first!r} where no ids "
                f"are given, got {y.shape[0]}"
            )


def _weights(pairs: list[Pair], weights: Mapping[Pair, float] | None) -> dict[Pair, float]:
    if weights is None:
        return dict.fromkeys(pairs, 1.0)
    _check_pairs_of("weights", weights, pairs)
    found = {
        pair: check.check_not_negative(f"weights[{pair}]", weight)
        for pair, weight in weights.items()
    }
    if sum(found.values()) == 0:
        raise ValueError(f"weights must be above 0 for at least one pair, got {found}")
    return found


def _check_pairs_of(name: str, of_pairs: Mapping[Pair, object], pairs: list[Pair]) -> None:
    if set(of_pairs) != set(pairs):
        missing = [pair for pair in pairs if pair not in of_pairs]
        other = [pair for pair in of_pairs if pair not in pairs]
        raise ValueError(f"{name} must be of the pairs, got none of {missing}, and of {other}")


def _objective(objective: str | Objective) -> Objective:
    if callable(objective):
        return objective
    check.check_choice("objective", objective, tuple(OBJECTIVES))
    return OBJECTIVES[objective]


def _of_pair(value: float | Tensor | Mapping[Pair, float | Tensor], pair: Pair) -> float | Tensor:
    return value[pair] if isinstance(value, Mapping) else value


def _checked_ids(features: Mapping[str, Tensor], ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ids by modality, of which none occurs twice; int64."""
    if set(ids) != set(features):
        raise ValueError(f"ids must be of the modalities {list(features)}, got {list(ids)}")
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(msg=NO_IDS_IN_A_GRAPH)  # with fullgraph=True it is an error
    checked = {}
    for name, given in ids.items():
        of, x = f"features[{name!r}]", features[name]
        value = check.check_indices(f"ids[{name!r}]", given, x.shape[0], of, x)
        if check.is_symbolic(value) or torch._C._get_tracing_state():
            raise RuntimeError(NO_IDS_IN_A_GRAPH)
        checked[name] = value
        _check_unique(name, value)
    return checked


def _shared_rows(
    features: Mapping[str, Tensor], ids: dict[str, Tensor] | None, pair: Pair, ranks: Ranks | None
) -> tuple[Tensor, Tensor]:
    """The rows of both modalities that are of the same things, in the same order."""
    x, y = (features[name] for name in pair)
    if ids is None:
        return x, y
    if ranks is not None:
        return _rows_of_ranks(features, ids, pair, ranks)
    first, second = (ids[name] for name in pair)
    if torch.equal(first, second):
        return x, y
    order = second.argsort()
    at = torch.searchsorted(second[order], first).clamp(max=len(second) - 1)
    is_shared = second[order[at]] == first
    if not bool(is_shared.any()):
        raise ValueError(f"ids must have rows in common for the pair {pair}, got none")
    return x[is_shared], y[order[at][is_shared]]


def _rows_of_ranks(
    features: Mapping[str, Tensor], ids: dict[str, Tensor], pair: Pair, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """This rank's rows of the first modality that the second has on any rank, and those rows.

    The rows of the second come from where they are, and their gradients go back there.
    """
    x, y = (features[name] for name in pair)
    first, second = (ids[name] for name in pair)
    _, columns = ranks.rows(f"multimodal_loss, {pair}", x=x, y=y)
    every = columns.gathered(second)
    order = every.argsort()
    at = torch.searchsorted(every[order], first).clamp(max=len(every) - 1)
    is_shared = every[order[at]] == first
    return x[is_shared], columns.at(y, order[at][is_shared])


def _check_ids_of_ranks(
    features: Mapping[str, Tensor], ids: dict[str, Tensor] | None, ranks: Ranks | None
) -> None:
    """No id occurs twice in a modality, on all ranks."""
    if ids is None or ranks is None:
        return
    for rows, (name, own) in zip(
        ranks.rows("multimodal_loss", **features), ids.items(), strict=True
    ):
        _check_unique(name, rows.gathered(own))


def _check_unique(name: str, ids: Tensor) -> None:
    ordered = ids.sort().values
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if again.numel():
        raise ValueError(f"ids[{name!r}] must not repeat, got {again[0].item()} more than once")
