"""Dtypes and modes of a measurement, and the random tensors it starts from."""

from typing import Literal

import torch
import torch.nn.functional as F

Mode = Literal["forward", "forward+backward"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_matrix(rows: int, width: int, dtype: str, seed: int) -> torch.Tensor:
    """Standard normal entries, (rows, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator).to(DTYPES[dtype])


def random_directions(rows: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Unit rows without any preferred direction, (rows, width), float32."""
    return F.normalize(torch.randn(rows, width, generator=generator), dim=1)


def resembling(rows: torch.Tensor, cosine: float, generator: torch.Generator) -> torch.Tensor:
    """Unit rows at about this cosine to the given ones, each in a direction of its own."""
    noise = random_directions(*rows.shape, generator)
    return F.normalize(cosine * rows + (1 - cosine**2) ** 0.5 * noise, dim=1)


def require_gradients(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mark every input as a leaf whose gradient is wanted."""
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}
