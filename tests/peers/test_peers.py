"""Objectives beside the classes of other libraries, installed and run: `make test-peers`.

Which, and how they are called: the peers of the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from objective_cases import Call
from peer_cases import ARE_INSTALLED, check, features, needs
from torch import Tensor

from mmcore import nn
from mmcore.bench.catalogue import CASES, Case
from mmcore.bench.catalogue.packages import open_clip_losses

# What it computes is not the same.
OTHERS = {"mmcore-longest"}
PAIRS = [
    pytest.param(case, peer, scale, id=f"{case.id} {name} {scale}")
    for case in CASES.values()
    for name, peer in {**case.variant.peers, **case.variant.small_peers}.items()
    for scale in ((1.0, 14.3, 100.0) if name == "open_clip" else (2.0, 14.3))
    if name not in OTHERS
]


def is_of_directions(features: Tensor) -> bool:
    """Rows are of unit length: some libraries normalise them once more."""
    return features.ndim == 2 and bool(((features.norm(dim=1) - 1).abs() < 1e-5).all())


@pytest.mark.parametrize(("case", "peer", "scale"), PAIRS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_value_and_gradients(
    case: Case, peer: Callable[[], Callable[..., Tensor]], scale: float
) -> None:
    """Catches an objective, or an option, that is not what the library computes."""
    try:
        theirs = peer()
    except ImportError as error:
        if ARE_INSTALLED:
            raise
        pytest.skip(str(error))
    call = Call.of(case, 48, 32, scale=scale)
    units = [is_of_directions(leaf) for leaf in call.leaves.values()]
    raw = [
        (leaf * torch.rand(len(leaf), 1).add(0.5) if is_unit else leaf.clone()).requires_grad_()
        for leaf, is_unit in zip(call.leaves.values(), units, strict=True)
    ]

    def run(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(*tensors: Tensor) -> Tensor:
            pairs = zip(tensors, units, strict=True)
            given = call.given([F.normalize(z, dim=1) if is_unit else z for z, is_unit in pairs])
            found = function(**given)
            return found if isinstance(found, Tensor) else found[0] + 0.3 * found[1]

        return loss

    check(run(case.function(32)), run(theirs), raw)


@needs("open_clip")
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss", "DistillClipLoss"])
def test_dictionaries_have_open_clips_names(name: str) -> None:
    teacher = [*features(), torch.tensor(30.0)] if name == "DistillClipLoss" else []
    more = [torch.tensor(-10.0)] if name == "SigLipLoss" else [z.detach() for z in teacher]
    inputs = [*features(), torch.tensor(9.0), *more]
    ours, theirs = (
        getattr(losses, name)()(*inputs, output_dict=True) for losses in (nn, open_clip_losses())
    )
    assert ours.keys() == theirs.keys()
