"""Operations on one row at a time: project, l2_normalize."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from inputs import DEFAULT_DEVICE, DTYPES, Mode, normal, random_matrix, require_gradients, seeded


@dataclass(frozen=True)
class ProjectCase:
    """LayerNorm → linear → bias → L2 normalise, from `input_width` to `width` columns."""

    rows: int
    input_width: int
    width: int
    dtype: str = "float32"
    op: ClassVar[str] = "project"
    is_bound_by_arithmetic: ClassVar[bool] = True

    @property
    def shape(self) -> dict[str, int | float]:
        """The sizes as a result line names them."""
        return {"rows": self.rows, "input_width": self.input_width, "width": self.width}

    def make_inputs(self, seed: int, device: str = DEFAULT_DEVICE) -> dict[str, torch.Tensor]:
        """x: (N, K); weight: (D, K); bias: (D,); norm_weight, norm_bias: (K,)."""
        generator = seeded(seed, device)
        inputs = {
            "x": normal(generator, self.rows, self.input_width),
            "weight": normal(generator, self.width, self.input_width) * self.input_width**-0.5,
            "bias": 0.1 * normal(generator, self.width),
            "norm_weight": 1 + 0.1 * normal(generator, self.input_width),
            "norm_bias": 0.1 * normal(generator, self.input_width),
        }
        inputs = {name: tensor.to(DTYPES[self.dtype]) for name, tensor in inputs.items()}
        return require_gradients(inputs)

    def make_output_gradient(self, seed: int, device: str = DEFAULT_DEVICE) -> torch.Tensor | None:
        """What arrives from above in the backward pass: (N, D)."""
        return random_matrix(self.rows, self.width, self.dtype, seed, device)

    def flop_count(self, mode: Mode) -> int:
        """2·N·K·D for the product, twice that for its two gradients; norms are not counted."""
        product = 2 * self.rows * self.input_width * self.width
        return product if mode == "forward" else 3 * product

    def byte_count(self, mode: Mode) -> int:
        """x, weight and the output once; backward: x, weight, grad_output, two gradients."""
        x = self.rows * self.input_width
        weight = self.width * self.input_width
        output = self.rows * self.width
        elements = x + weight + output
        if mode == "forward+backward":
            elements += 2 * x + 2 * weight + output
        return elements * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class L2NormalizeCase:
    """Rows of `width` columns divided by their L2 norm; bound by memory, not by arithmetic."""

    rows: int
    width: int
    dtype: str = "float32"
    op: ClassVar[str] = "l2_normalize"
    is_bound_by_arithmetic: ClassVar[bool] = False

    @property
    def shape(self) -> dict[str, int | float]:
        """The sizes as a result line names them."""
        return {"rows": self.rows, "width": self.width}

    def make_inputs(self, seed: int, device: str = DEFAULT_DEVICE) -> dict[str, torch.Tensor]:
        """x: (N, D)."""
        x = random_matrix(self.rows, self.width, self.dtype, seed, device)
        return require_gradients({"x": x})

    def make_output_gradient(self, seed: int, device: str = DEFAULT_DEVICE) -> torch.Tensor | None:
        """What arrives from above in the backward pass: (N, D)."""
        return random_matrix(self.rows, self.width, self.dtype, seed + 1, device)

    def flop_count(self, mode: Mode) -> int:
        """Per element: square, add, scale; backward: dot (2), g − y·⟨y, g⟩ (2), scale."""
        return (3 if mode == "forward" else 8) * self.rows * self.width

    def byte_count(self, mode: Mode) -> int:
        """Read x, write the output; backward: read the output and its gradient, write grad_x."""
        matrices = 2 if mode == "forward" else 5
        return matrices * self.rows * self.width * DTYPES[self.dtype].itemsize
