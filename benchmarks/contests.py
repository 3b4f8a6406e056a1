"""Objectives of mmcore beside the class of the library that has them, or plain torch where none.

A contest is one objective: its function of the features by mmcore, and those of its rivals, each as
their users write it. All are float32, forward and backward, N rows a side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from inputs import DEFAULT_DEVICE, Mode, random_directions, require_gradients, resembling, seeded
from mmcore import functional
from providers.packages import lightly_losses, metric_learning_losses, open_clip_losses

Loss = Callable[..., Tensor]
SCALE, TEMPERATURE, PAIR_COSINE = 20.0, 0.05, 0.2
DIMS = (32, 64, 128, 256, 512)
QUEUE, VOCABULARY = 4096, 8192
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
NAMES = ("x", "y", "z")


@dataclass(frozen=True)
class Contest:
    """One objective over `sides` matrices of N rows; rivals by the name of their provider."""

    op: str
    ours: Loss
    rivals: Mapping[str, Callable[[], Loss]]
    sides: int = 2
    # 2·N²·D each, of a forward and a backward that store no matrix.
    products: float = 4
    rows: int = 4096
    width: int = 512
    dtype: str = "float32"
    is_bound_by_arithmetic: ClassVar[bool] = True
    shape: dict[str, int | float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", {"rows": self.rows, "width": self.width})

    def make_inputs(self, seed: int, device: str = DEFAULT_DEVICE) -> dict[str, Tensor]:
        """Unit rows, (N, D), of which row i of every side resembles that of the first."""
        generator = seeded(seed, device)
        first = random_directions(self.rows, self.width, generator)
        others = (resembling(first, PAIR_COSINE, generator) for _ in range(self.sides - 1))
        return require_gradients(dict(zip(NAMES, (first, *others), strict=False)))

    def make_output_gradient(self, seed: int, device: str = DEFAULT_DEVICE) -> None:
        """The loss is a scalar: its gradient is 1."""

    def flop_count(self, mode: Mode) -> int:
        """What is counted for everybody."""
        return int(self.products * 2 * self.rows**2 * self.width)

    def byte_count(self, mode: Mode) -> int:
        """Features once, their gradients once."""
        return 2 * self.sides * self.rows * self.width * torch.float32.itemsize


def diagonal(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0])


def labels(x: Tensor) -> Tensor:
    """Four rows of each class."""
    return diagonal(x) // 4


def two_ways(side: Callable[[Tensor], Tensor]) -> Loss:
    """The mean of a loss of the logits and of the transposed ones."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits = SCALE * x @ y.T
        return (side(logits) + side(logits.T)) / 2

    return loss


# ---- rivals in plain torch


def smoothed(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, diagonal(logits), label_smoothing=0.1)


def supervised(logits: Tensor) -> Tensor:
    positive = labels(logits)[:, None] == labels(logits)
    return (logits.logsumexp(1) - torch.where(positive, logits, 0.0).sum(1) / 4).mean()


def hard_negatives(logits: Tensor) -> Tensor:
    """Robinson's, hardness 0.5, in logarithms, without which it overflows."""
    positive, n = logits.diagonal(), logits.shape[0] - 1
    negatives = logits.masked_fill(torch.eye(n + 1, dtype=torch.bool), -torch.inf)
    total = (1.5 * negatives).logsumexp(1) - (0.5 * negatives).logsumexp(1)
    return F.softplus(total + torch.tensor(float(n)).log() - positive).mean()


def mil_nce(x: Tensor, y: Tensor) -> Tensor:
    logits = SCALE * x @ y.T
    positive = labels(x)[:, None] == labels(y)
    candidates = logits.masked_fill(~positive, -torch.inf).logsumexp(1)
    return (logits.logsumexp(1) - candidates).mean()


def blocks(x: Tensor, y: Tensor, queue: Tensor) -> Tensor:
    """InfoNCE with the queue apart, for which no gradient is computed then."""
    of_keys, of_queue = SCALE * x @ y.T, SCALE * x @ queue.T
    lse = torch.logaddexp(of_keys.logsumexp(1), of_queue.logsumexp(1))
    return (lse - of_keys.diagonal()).mean()


def vse(x: Tensor, y: Tensor) -> Tensor:
    cosine = x @ y.T
    negative = cosine.masked_fill(torch.eye(len(x), dtype=torch.bool), -torch.inf)
    hinges = [(0.2 + negative.amax(side) - cosine.diagonal()).relu() for side in (0, 1)]
    return (hinges[0] + hinges[1]).mean()


def uniformity(x: Tensor) -> Tensor:
    """As its authors write it, by torch.pdist."""
    return torch.pdist(x).square().mul(-2).exp().mean().log()


def mmd(x: Tensor, y: Tensor) -> Tensor:
    def mean(a: Tensor, b: Tensor) -> Tensor:
        square = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        return (-square / 2).exp().mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def symile(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    sides = ((x, y * z), (y, x * z), (z, x * y))
    return sum(F.cross_entropy(SCALE * a @ b.T, diagonal(x)) for a, b in sides) / 3


def cyclip(x: Tensor, y: Tensor) -> Tensor:
    cross, own = x @ y.T, x @ x.T - y @ y.T
    return ((cross - cross.T).square().sum() + own.square().sum()) / (4 * len(x))


def volumes(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """GRAM of three modalities by torch.linalg.det, both ways."""
    xy, xz, yz = x @ y.T, x @ z.T, (y * z).sum(1).expand(len(x), -1)
    one = torch.ones_like(xy)
    rows = [torch.stack(row, -1) for row in ((one, xy, xz), (xy, one, yz), (xz, yz, one))]
    logits = -SCALE * torch.stack(rows, -1).det().abs().sqrt()
    return (F.cross_entropy(logits, diagonal(x)) + F.cross_entropy(logits.T, diagonal(x))) / 2


def three_pairs(x: Tensor, y: Tensor, z: Tensor, loss: Loss) -> Tensor:
    return sum(loss(a, b, SCALE) for a, b in combinations((x, y, z), 2)) / 3


def of_prefixes(x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """What sentence-transformers' MatryoshkaLoss does: the loss once for each prefix."""
    prefixes = ([F.normalize(side[:, :d], dim=1) for side in (x, y)] for d in DIMS)
    return sum(loss(*sides, SCALE) for sides in prefixes)


# ---- rivals of libraries


def open_clip(name: str) -> Loss:
    return getattr(open_clip_losses(), name)()


def lightly(module: str, name: str, **options: float) -> Loss:
    lightly_losses()  # enters the package without what it imports
    losses = __import__(f"lightly.loss.{module}", fromlist=[name])
    loss = getattr(losses, name)(**options)
    return lambda x, y: loss(x, y)


def sup_con_of_metric_learning() -> Loss:
    loss = metric_learning_losses().SupConLoss(temperature=TEMPERATURE)
    return lambda x: loss(x, labels(x))


def ranking_of_sentence_transformers(**options: Any) -> Loss:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=SCALE, **options)
    return lambda x, y, z: loss.compute_loss_from_embeddings([x, y, z], torch.empty(0))


def with_queue(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    queue = random_directions(QUEUE, 512, seeded(0))
    return lambda x, y: loss(x, y, queue)


def with_vocabulary(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    weight = random_directions(VOCABULARY, 512, seeded(0)).requires_grad_()
    return lambda x: loss(20 * x, weight, diagonal(x) % VOCABULARY)


def with_decoder(loss: Callable[..., Tensor]) -> Loss:
    """The third side is what a decoder leaves of each image, one word of it."""
    weight = random_directions(VOCABULARY, 512, seeded(0)).requires_grad_()
    return lambda x, y, z: loss(x, y, 20 * z[:, None], weight, diagonal(x)[:, None] % VOCABULARY)


def coca_of_open_clip() -> Loss:
    loss = open_clip_losses().CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    return with_decoder(lambda x, y, hidden, w, words: sum(loss(x, y, hidden @ w.T, words, SCALE)))


def distilled(loss: Callable[..., Any]) -> Loss:
    teacher = [random_directions(4096, 512, seeded(seed)) for seed in (1, 2)]
    return lambda x, y: sum(loss(x, y, SCALE, *teacher, SCALE))


# ---- all of them


def ranking(x: Tensor, y: Tensor, z: Tensor, **options: Any) -> Tensor:
    return functional.multiple_negatives_ranking_loss(x, [y, z], SCALE, **options)


EAGER = "torch-eager"
ST_OPTIONS = {"hardness_mode": "all_negatives", "hardness_strength": 5.0}
OUR_OPTIONS = {"hardness": "all_negatives", "hardness_strength": 5.0}


def contests(rows: int = 4096) -> list[Contest]:
    """Every objective that has a rival."""
    f, make = functional, partial(Contest, rows=rows)
    return [
        make("clip", lambda x, y: f.clip_loss(x, y, SCALE), {"open_clip": lambda: lambda x, y: open_clip("ClipLoss")(x, y, SCALE)}),
        make("clip, label smoothing", lambda x, y: f.clip_loss(x, y, SCALE, label_smoothing=0.1), {EAGER: lambda: two_ways(smoothed)}),
        make("info_nce, queue of 4,096", with_queue(lambda x, k, q: f.info_nce_loss(x, k, SCALE, queue=q)), {EAGER: lambda: with_queue(lambda x, k, q: F.cross_entropy(SCALE * x @ torch.cat([k, q]).T, diagonal(x))), "torch-eager-blocks": lambda: with_queue(blocks)}, products=7),
        make("siglip", lambda x, y: f.siglip_loss(x, y, SCALE, -10.0), {"open_clip": lambda: lambda x, y: open_clip("SigLipLoss")(x, y, SCALE, -10.0)}, products=3),
        make("sup_con", lambda x: f.sup_con_loss(x, labels(x), SCALE), {"pytorch-metric-learning": sup_con_of_metric_learning}, sides=1, products=2),
        make("unicl", lambda x, y: f.unicl_loss(x, y, labels(x), labels(y), SCALE), {EAGER: lambda: two_ways(supervised)}),
        make("mil_nce", lambda x, y: f.mil_nce_loss(x, y, labels(x), labels(y), SCALE), {EAGER: lambda: mil_nce}),
        make("nt_xent", lambda x, y: f.nt_xent_loss(x, y, SCALE), {"lightly": lambda: lightly("ntx_ent_loss", "NTXentLoss", temperature=TEMPERATURE)}, products=8),
        make("dcl", lambda x, y: f.dcl_loss(x, y, SCALE), {"lightly": lambda: lightly("dcl_loss", "DCLLoss", temperature=TEMPERATURE)}, products=8),
        make("dcl, weighted", lambda x, y: f.dcl_loss(x, y, SCALE, sigma=0.5), {"lightly": lambda: lightly("dcl_loss", "DCLWLoss", temperature=TEMPERATURE)}, products=8),
        make("hard_negative", lambda x, y: f.hard_negative_loss(x, y, SCALE, hardness=0.5), {EAGER: lambda: two_ways(hard_negatives)}, products=8),
        make("ranking, one hard negative", ranking, {"sentence-transformers": lambda: ranking_of_sentence_transformers()}, sides=3, products=8),
        make("ranking, four directions", partial(ranking, directions=DIRECTIONS), {"sentence-transformers": lambda: ranking_of_sentence_transformers(directions=DIRECTIONS)}, sides=3, products=18),
        make("ranking, hardness", partial(ranking, **OUR_OPTIONS), {"sentence-transformers": lambda: ranking_of_sentence_transformers(**ST_OPTIONS)}, sides=3, products=8),
        make("vse", f.vse_loss, {EAGER: lambda: vse}, products=1),
        make("uniformity", f.uniformity_loss, {EAGER: lambda: uniformity}, sides=1, products=2),
        make("mmd", lambda x, y: f.mmd_loss(x, y, bandwidths=(1.0,)), {EAGER: lambda: mmd}, products=8),
        make("distillation", distilled(lambda *z: mmcore.nn.DistillClipLoss()(*z)), {"open_clip": lambda: distilled(open_clip("DistillClipLoss"))}, products=6),
        make("linear_cross_entropy, V = 8,192", with_vocabulary(f.linear_cross_entropy_loss), {EAGER: lambda: with_vocabulary(lambda x, w, t: F.cross_entropy(F.linear(x, w), t)), "torch-linear-cross-entropy": lambda: with_vocabulary(F.linear_cross_entropy)}, sides=1, products=8),
        make("coca, V = 8,192", with_decoder(lambda x, y, hidden, w, words: f.coca_loss(x, y, SCALE, hidden, w, words)), {"open_clip": coca_of_open_clip}, sides=3, products=12),
        make("matryoshka, 5 prefixes", lambda x, y: f.matryoshka_loss(x, y, SCALE, DIMS), {EAGER: lambda: lambda x, y: of_prefixes(x, y, open_clip("ClipLoss")), "mmcore-longest": lambda: lambda x, y: f.clip_loss(x, y, SCALE)}),
        make("three modalities, all pairs", lambda x, y, z: f.multimodal_loss({"x": x, "y": y, "z": z}, SCALE), {EAGER: lambda: lambda x, y, z: three_pairs(x, y, z, open_clip("ClipLoss")), "mmcore-pairs": lambda: lambda x, y, z: three_pairs(x, y, z, f.clip_loss)}, sides=3, products=12),
        make("symile", lambda x, y, z: f.symile_loss({"x": x, "y": y, "z": z}, SCALE), {EAGER: lambda: symile}, sides=3, products=12),
        make("gram volume", lambda x, y, z: f.gram_loss({"x": x, "y": y, "z": z}, SCALE, anchor="x"), {EAGER: lambda: volumes}, sides=3, products=8),
        make("barlow_twins", lambda x, y: f.barlow_twins_loss(x, y), {"lightly": lambda: lightly("barlow_twins_loss", "BarlowTwinsLoss")}, products=0.375),
        make("vicreg", lambda x, y: f.vicreg_loss(x, y), {"lightly": lambda: lightly("vicreg_loss", "VICRegLoss")}, products=0.5),
        make("cyclip", f.cyclip_loss, {EAGER: lambda: cyclip}, products=0.875),
    ]  # fmt: skip
