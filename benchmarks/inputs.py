"""Dtypes and modes of a measurement, and the random tensors it starts from."""

from typing import Literal

import torch
import torch.nn.functional as F

Mode = Literal["forward", "forward+backward"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A device's random numbers are its own: the same seed gives others on a GPU than on a CPU.
DEFAULT_DEVICE = "cpu"


def seeded(seed: int, device: str = DEFAULT_DEVICE) -> torch.Generator:
    """Random numbers that are made on the device itself."""
    return torch.Generator(device).manual_seed(seed)


def normal(generator: torch.Generator, *size: int) -> torch.Tensor:
    """Standard normal entries on the generator's device, float32."""
    return torch.randn(size, generator=generator, device=generator.device)


def random_matrix(
    rows: int, width: int, dtype: str, seed: int, device: str = DEFAULT_DEVICE
) -> torch.Tensor:
    """Standard normal entries, (rows, width)."""
    return normal(seeded(seed, device), rows, width).to(DTYPES[dtype])


def random_directions(rows: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Unit rows without any preferred direction, (rows, width), float32."""
    return F.normalize(normal(generator, rows, width), dim=1)


def resembling(rows: torch.Tensor, cosine: float, generator: torch.Generator) -> torch.Tensor:
    """Unit rows at about this cosine to the given ones, each in a direction of its own."""
    noise = random_directions(*rows.shape, generator)
    return F.normalize(cosine * rows + (1 - cosine**2) ** 0.5 * noise, dim=1)


def require_gradients(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mark every input as a leaf whose gradient is wanted."""
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}
