"""Objectives of mmcore beside the class of the library that has them, or plain torch where none.

A contest is a case of the catalogue that has peers: its function of the features by mmcore, and
those of its rivals, each as their users write it. All are float32, forward and backward, N rows a
side; labels, a queue, a teacher and the scale are the same in every call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from inputs import DEFAULT_DEVICE, Mode, require_gradients
from mmcore.bench.catalogue import CASES, Case, Draw, filled

Loss = Callable[..., Tensor]
SCALE = 20.0


@dataclass(frozen=True)
class Contest:
    """One objective over matrices of N rows; rivals by the name of their provider."""

    case: Case
    rows: int = 4096
    width: int = 512
    dtype: str = "float32"
    is_bound_by_arithmetic: ClassVar[bool] = True
    shape: dict[str, int | float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", {"rows": self.rows, "width": self.width})

    @property
    def op(self) -> str:
        """The name in results and tables."""
        return self.case.variant.title.format(rows=self.rows, twice=2 * self.rows)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Those of every call; the scale is a number."""
        draw = Draw(self.rows, self.width, SCALE, kind="pairs")
        arguments = self.case.arguments(draw)
        return arguments | {"scale": SCALE} if "scale" in arguments else arguments

    def features(self, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """What differs from call to call, by names that are words."""
        leaves = self.case.leaves(dict(arguments), self.case.variant.frozen)
        return {" ".join(map(str, path)): leaf for path, leaf in leaves.items() if leaf.ndim > 1}

    @property
    def ours(self) -> Loss:
        """mmcore's function of the features."""
        return self.of_features(self.case.function(self.width))

    @property
    def rivals(self) -> dict[str, Callable[[], Loss]]:
        """Builds the rivals, which raise ImportError where their library is missing."""
        peers = self.case.variant.peers
        return {name: partial(self.rival, peer) for name, peer in peers.items()}

    def rival(self, peer: Callable[[], Callable[..., Any]]) -> Loss:
        """A peer's function of the features."""
        return self.of_features(peer())

    def of_features(self, function: Callable[..., Any]) -> Loss:
        """A function of all arguments as one of the features by name."""
        paths = {" ".join(map(str, path)): path for path in self.case.leaves(self.arguments)}

        def loss(**features: Tensor) -> Tensor:
            leaves = {paths[name]: tensor for name, tensor in features.items()}
            found = function(**filled(self.arguments, leaves))
            return found if isinstance(found, Tensor) else sum(found)

        return loss

    def make_inputs(self, seed: int, device: str = DEFAULT_DEVICE) -> dict[str, Tensor]:
        """Features, of which row i of every side resembles that of the first."""
        with torch.device(device):
            draw = Draw(self.rows, self.width, SCALE, kind="pairs", seed=seed)
            return require_gradients(self.features(self.case.arguments(draw)))

    def make_output_gradient(self, seed: int, device: str = DEFAULT_DEVICE) -> None:
        """The loss is a scalar: its gradient is 1."""

    def flop_count(self, mode: Mode) -> int:
        """What is counted for everybody."""
        return int(self.case.flops(self.rows, self.width))

    def byte_count(self, mode: Mode) -> int:
        """Features once, their gradients once."""
        numbers = sum(feature.numel() for feature in self.features(self.arguments).values())
        return 2 * numbers * torch.float32.itemsize


def contests(rows: int = 4096) -> list[Contest]:
    """Every objective that has a rival."""
    return [Contest(case, rows) for case in CASES.values() if case.variant.title]
