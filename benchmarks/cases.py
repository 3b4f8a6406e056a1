"""What is measured: shapes, fresh inputs, and the arithmetic and traffic counted explicitly.

A count belongs to the case, never to the provider: everybody gets the same numerator, so ratios of
GFLOP/s are ratios of time, and a provider that does superfluous work cannot look busy.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

Mode = Literal["forward", "forward+backward"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ClipCase:
    """Symmetric CLIP loss of `rows` pairs of unit vectors with `width` columns."""

    rows: int
    width: int
    dtype: str = "float32"
    # CLIP's scale is clamped at 100 and ends there; errors are largest there as well.
    scale: float = 100.0
    # Cosine of a pair, near where it stands while the loss is still falling at this scale.
    pair_cosine: ClassVar[float] = 0.2
    op: ClassVar[str] = "clip"
    is_bound_by_arithmetic: ClassVar[bool] = True

    @property
    def shape(self) -> dict[str, int | float]:
        """The sizes as a result line names them."""
        return {"rows": self.rows, "width": self.width, "scale": self.scale}

    def make_inputs(self, seed: int) -> dict[str, torch.Tensor]:
        """x, y: (N, D) unit rows of which xᵢ and yᵢ resemble each other; scale: 0-D float32."""
        generator = torch.Generator().manual_seed(seed)
        x = F.normalize(torch.randn(self.rows, self.width, generator=generator), dim=1)
        noise = F.normalize(torch.randn(self.rows, self.width, generator=generator), dim=1)
        sine = (1 - self.pair_cosine**2) ** 0.5
        y = F.normalize(self.pair_cosine * x + sine * noise, dim=1)
        dtype = DTYPES[self.dtype]
        scale = torch.tensor(self.scale)
        return require_gradients({"x": x.to(dtype), "y": y.to(dtype), "scale": scale})

    def make_output_gradient(self, seed: int) -> torch.Tensor | None:
        """The loss is a scalar: its gradient is 1."""
        return None

    def flop_count(self, mode: Mode) -> int:
        """2·N²·D for S = x·yᵀ; backward: S once more, G·y and Gᵀ·x, so 8·N²·D together.

        That is the least without storing S. exp, log and sums are not counted.
        """
        product = 2 * self.rows**2 * self.width
        return product if mode == "forward" else 4 * product

    def byte_count(self, mode: Mode) -> int:
        """What cannot be avoided: x and y are read once, their gradients written once."""
        operands = 2 * self.rows * self.width * DTYPES[self.dtype].itemsize
        return operands if mode == "forward" else 2 * operands


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

    def make_inputs(self, seed: int) -> dict[str, torch.Tensor]:
        """x: (N, K); weight: (D, K); bias: (D,); norm_weight, norm_bias: (K,)."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator)

        inputs = {
            "x": normal(self.rows, self.input_width),
            "weight": normal(self.width, self.input_width) * self.input_width**-0.5,
            "bias": 0.1 * normal(self.width),
            "norm_weight": 1 + 0.1 * normal(self.input_width),
            "norm_bias": 0.1 * normal(self.input_width),
        }
        inputs = {name: tensor.to(DTYPES[self.dtype]) for name, tensor in inputs.items()}
        return require_gradients(inputs)

    def make_output_gradient(self, seed: int) -> torch.Tensor | None:
        """What arrives from above in the backward pass: (N, D)."""
        return random_matrix(self.rows, self.width, self.dtype, seed)

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

    def make_inputs(self, seed: int) -> dict[str, torch.Tensor]:
        """x: (N, D)."""
        return require_gradients({"x": random_matrix(self.rows, self.width, self.dtype, seed)})

    def make_output_gradient(self, seed: int) -> torch.Tensor | None:
        """What arrives from above in the backward pass: (N, D)."""
        return random_matrix(self.rows, self.width, self.dtype, seed + 1)

    def flop_count(self, mode: Mode) -> int:
        """Per element: square, add, scale; backward: dot (2), g − y·⟨y, g⟩ (2), scale."""
        return (3 if mode == "forward" else 8) * self.rows * self.width

    def byte_count(self, mode: Mode) -> int:
        """Read x, write the output; backward: read the output and its gradient, write grad_x."""
        matrices = 2 if mode == "forward" else 5
        return matrices * self.rows * self.width * DTYPES[self.dtype].itemsize


def random_matrix(rows: int, width: int, dtype: str, seed: int) -> torch.Tensor:
    """Standard normal entries, (rows, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator).to(DTYPES[dtype])


def require_gradients(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mark every input as a leaf whose gradient is wanted."""
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


Case = ClipCase | ProjectCase | L2NormalizeCase
CASE_TYPES: dict[str, type[Case]] = {
    "clip": ClipCase,
    "project": ProjectCase,
    "l2_normalize": L2NormalizeCase,
}


def make_case(
    op: str, *, rows: int, width: int, input_width: int, dtype: str, scale: float
) -> Case:
    """The case of one operation; what the operation does not use is left out."""
    if op == "clip":
        return ClipCase(rows, width, dtype, scale)
    if op == "project":
        return ProjectCase(rows, input_width, width, dtype)
    return L2NormalizeCase(rows, width, dtype)
