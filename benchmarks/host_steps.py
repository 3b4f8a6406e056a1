"""The steps whose time on the host is measured: inputs, mmcore's call, and the formula in PyTorch.

The batch is tiny. The host does the same for every size, and what PyTorch's own kernels compute on
this processor, where a GPU would have them only launched, takes next to nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, WIDTH, QUEUED = 32, 64, 256
SHAPE: dict[str, int | float] = {"rows": ROWS, "width": WIDTH}
FORWARD, WHOLE_STEP = "forward", "forward+backward"
Step = Callable[[], object]


@dataclass(frozen=True)
class HostCase:
    """One step, and the share of the older commit's time that it is to take at most."""

    op: str
    mode: str = WHOLE_STEP
    goal: float | None = None  # with Triton's launches
    goal_of_plan: float | None = None
    shape: dict[str, int | float] = field(default_factory=SHAPE.copy)
    dtype: str = "bfloat16"

    @property
    def title(self) -> str:
        """For example `clip, forward`."""
        return self.op if self.mode == WHOLE_STEP else f"{self.op}, {self.mode}"


CASES = (
    HostCase("clip", goal=0.18, goal_of_plan=0.08),
    HostCase("clip", FORWARD),
    HostCase("siglip", goal=0.25, goal_of_plan=0.12),
    HostCase("project_layer_norm", goal=0.4, goal_of_plan=0.4),
    HostCase("project", goal=0.4, goal_of_plan=0.4),
    HostCase("info_nce_queue", goal=0.4, goal_of_plan=0.4, shape=SHAPE | {"queue": QUEUED}),
    HostCase("nt_xent", goal=0.4, goal_of_plan=0.4, shape=SHAPE | {"rows": 2 * ROWS}),
    HostCase("l2_normalize", goal=0.4, goal_of_plan=0.4),
    HostCase("sup_con", goal=0.4, goal_of_plan=0.4),
)


class Inputs:
    """Features, weights and numbers with gradients; what has none is a constant."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=draw).bfloat16()

        self.x, self.y = (F.normalize(normal(ROWS, WIDTH)).requires_grad_() for _ in range(2))
        self.weight, self.bias = (
            normal(*size).requires_grad_() for size in ((WIDTH, WIDTH), (WIDTH,))
        )
        self.norm_weight, self.norm_bias = (normal(WIDTH).requires_grad_() for _ in range(2))
        self.scale, self.logit_bias = (torch.tensor(at, requires_grad=True) for at in (10.0, -10.0))
        self.queue, self.upstream = F.normalize(normal(QUEUED, WIDTH)), normal(ROWS, WIDTH)
        self.label = torch.arange(ROWS) // 4

    def forget_gradients(self) -> None:
        """As `zero_grad` of an optimizer does."""
        for value in vars(self).values():
            value.grad = None


def calls(inputs: Inputs, functions: dict[str, Callable[..., Tensor]]) -> dict[str, Step]:
    """The forward of every op with these functions, by the op's name."""
    i, of = inputs, functions
    norm = {"norm_weight": i.norm_weight, "norm_bias": i.norm_bias}
    project = partial(of["project"], i.x, i.weight)
    return {
        "clip": lambda: of["clip"](i.x, i.y, i.scale),
        "siglip": lambda: of["siglip"](i.x, i.y, i.scale, i.logit_bias),
        "project_layer_norm": lambda: project(i.bias, norm="layer", **norm),
        "project": project,
        "info_nce_queue": lambda: of["info_nce"](i.x, i.y, i.scale, queue=i.queue),
        "nt_xent": lambda: of["nt_xent"](i.x, i.y, i.scale),
        "l2_normalize": lambda: of["l2_normalize"](i.x),
        "sup_con": lambda: of["sup_con"](i.x, i.label, i.scale),
    }


def step(case: HostCase, inputs: Inputs, functions: dict[str, Callable[..., Tensor]]) -> Step:
    """The case's step, ready to be called again and again."""
    call = calls(inputs, functions)[case.op]
    if case.mode == FORWARD:
        return torch.no_grad()(call)

    def forward_and_backward() -> None:
        value: Any = call()
        value.backward(None if value.ndim == 0 else inputs.upstream)

    return forward_and_backward


def of_mmcore() -> dict[str, Callable[..., Tensor]]:
    """mmcore's functions on the Triton backend."""
    from mmcore import functional

    found = {
        "clip": functional.clip_loss,
        "siglip": functional.siglip_loss,
        "project": functional.project,
        "info_nce": functional.info_nce_loss,
        "nt_xent": functional.nt_xent_loss,
        "l2_normalize": functional.l2_normalize,
        "sup_con": functional.sup_con_loss,
    }
    return {name: partial(function, backend="triton") for name, function in found.items()}


def of_torch() -> dict[str, Callable[..., Tensor]]:
    """The same in PyTorch: the catalogue's formulas, and the projection head as one writes it."""
    from mmcore.bench.catalogue import ROWS as CATALOGUE

    def project(x: Tensor, weight: Tensor, bias: Tensor | None = None, **norm: Any) -> Tensor:
        if norm:
            x = F.layer_norm(x, (WIDTH,), norm["norm_weight"], norm["norm_bias"])
        return F.normalize(F.linear(x, weight, bias))

    losses = ("clip", "siglip", "info_nce", "nt_xent", "sup_con")
    plain = {name: CATALOGUE[f"{name}_loss"].plain for name in losses}
    return {**plain, "project": project, "l2_normalize": F.normalize}
