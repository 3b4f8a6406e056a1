"""GRAM: several modalities compared at once, by the volume that their rows span."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, Rows, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops import volume as volume_op
from mmcore.ops.sharded import volume as sharded_volume_op
from mmcore.ops.sharded.volume import ShardedVolumeInputs
from mmcore.ops.volume import VolumeInputs, VolumeStatistics


@scale_not_temperature
@tells_ranks
def gram_loss(
    features: Mapping[str, Tensor],
    scale: float | Tensor,
    *,
    anchor: str,
    label_smoothing: float = 0.0,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """GRAM: rows that belong together span a small volume, rows that do not a large one.

    Equivalent, without ever storing the (N, N) volumes, to ::

        first = features.pop(anchor)
        rows = [first[:, None].expand(N, N, D)]  # row i of the anchor, rows j of all others
        rows = torch.stack([*rows, *(z.expand(N, N, D) for z in features.values())], 2)
        logits = -scale * torch.linalg.det(rows @ rows.mT).sqrt()
        target = torch.arange(N)
        (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    Args:
        features: the rows of each of at least two modalities by its name, (N, D), of one dtype and
            of unit length; row i of all is of the same thing.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        anchor: the modality of which each row is compared with all rows of the others, such as the
            text. The rows of the others stay together.
        label_smoothing: in [0, 1), as in ``F.cross_entropy``. The paper's code has 0.1.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`. It is the same plain torch on all of them.

    Returns:
        0-D, float32 (float64 for float64 inputs). Positives are computed in float64. Where a row
        lies in the span of the others, up to an angle of 1e-6, the volume is 0 and so is its
        gradient: a root has none there.

    Raises:
        TypeError, ValueError: features are no matrices of one shape, dtype and device by name, or
            fewer than 2; `anchor` is none of them; `scale` is no scalar or not finite;
            `label_smoothing` is out of its range.

    Memory:
        O(N), and the intermediate results of a tile of 1024×1024 pairs: 4 MiB for each modality but
        the anchor and for each of up to eight others. On a GPU the tile is 4096×4096, of 64 MiB.

    Reference:
        Cicchetti et al., Gramian Multimodal Representation Learning and Alignment, 2024,
        https://arxiv.org/abs/2412.11959; without the matching term that it adds.

    Example:
        >>> import torch, mmcore
        >>> names = ("text", "video", "audio")
        >>> features = {m: mmcore.functional.l2_normalize(torch.randn(4, 8)) for m in names}
        >>> mmcore.functional.gram_loss(features, scale=1 / 0.07, anchor="text").shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("gram_loss", process_group)
    features = check.check_modalities(features)
    check.check_modality("anchor", anchor, features)
    check.check_equal_rows(features)
    label_smoothing = check.check_fraction("label_smoothing", label_smoothing)
    check.check_scale("scale", scale)
    first = features[anchor]
    if ranks is None:
        check.check_rows(f"features[{anchor!r}]", first)
    # float64: its gradient is the difference of what positives and negatives add to it.
    scale = check.as_scalar("scale", scale, first).double()
    others = [value for name, value in features.items() if name != anchor]
    count: int | Tensor = first.shape[0]
    if ranks is None:
        found = volume_op.call(VolumeInputs(first, others, scale), backend=backend)
    else:
        sizes = {"rows": first.shape[0], "columns": first.shape[0]}
        agreed = ranks.agree("gram_loss", features, sizes=sizes, anchor=anchor)
        count = Rows(agreed[:, 0], ranks).total(first.device)
        inputs = ShardedVolumeInputs(first, others, scale, agreed, ranks.group)
        found = sharded_volume_op.call(inputs, backend=backend)
    return as_loss(_loss(found, scale, label_smoothing, count, ranks), first)


def _loss(
    found: VolumeStatistics, scale: Tensor, label_smoothing: float, count: int | Tensor,
    ranks: Ranks | None,
) -> Tensor:  # fmt: skip
    """`count` is how many rows there are, on all ranks."""
    positive = -scale * found.own
    log_z = torch.logaddexp(found.row_lse, positive) + torch.logaddexp(found.col_lse, positive)
    log_z = log_z / 2
    if ranks is None:
        mean_log_z, mean_positive = log_z.mean(), positive.mean()
        mean = (found.total + positive.sum()) / count**2
    else:
        sums = [log_z.sum(), positive.sum(), found.total + positive.sum()]
        total = ranks.total(torch.stack(sums))
        mean_log_z, mean_positive, mean = total[0] / count, total[1] / count, total[2] / count**2
    target = (1 - label_smoothing) * mean_positive + label_smoothing * mean
    return mean_log_z - target
