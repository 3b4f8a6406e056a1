"""What the Triton kernels become on GPUs that need not be there: triton_assembly.py, asserted.

Matrix units multiply, the copy engine brings the operands where there is one, a tile stays in
registers, shared memory suffices, and a logit takes one exponential.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import pytest
from assembly import Figures, compiler
from machines import ASSEMBLY_TARGETS
from packaging.version import Version

pytest.importorskip("triton")

SHARED_MEMORY = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}
COPY_ENGINES = [machine for machine in ("sm_90", "sm_100") if machine in ASSEMBLY_TARGETS]
SIMILARITY_KERNELS = [
    "sum_exponentials", "log_sum_exps", "clip_loss", "store_gradient", "store_gradient_exact",
    "sigmoid_tile", "hardest_negatives",
]  # fmt: skip
ROW_KERNELS = [
    "l2_normalize_forward", "l2_normalize_backward", "input_norm_forward", "project_rows",
    "project_parameters", "norms_and_targets", "tally", "largest_gradients", "gradient_terms",
    "scale_rows", "sum_with_rows", "sigmoid_prepare", "sigmoid_totals", "from_cached",
    "siglip_gradients",
]  # fmt: skip


# The others have products for unusual features alone.
BY_COPY_ENGINE = [
    kernel for kernel in SIMILARITY_KERNELS if kernel not in ("log_sum_exps", "clip_loss")
]
TILED_BY_OBJECTIVE = ["sum_exponentials", "store_gradient", "sigmoid_tile"]
OBJECTIVES = ["nt_xent", "sup_con", "labels"]
CALLS = [(kernel, "clip") for kernel in SIMILARITY_KERNELS + ROW_KERNELS] + [
    (kernel, objective) for kernel in TILED_BY_OBJECTIVE for objective in OBJECTIVES
]
# The launches of one loss that have forms of their own for it.
CALLS += [(f"sigmoid_{kernel}", "siglip") for kernel in ("prepare", "tile", "totals")]
VARIANTS = [
    "sizes of 1", "labels", "one side", "float32", "tensor float 32", "pointers", "kept",
    "loss", "kept loss", "loss without a gradient",
]  # fmt: skip
# No launch is for exact tiles alone where exponentials were kept.
CALLS_OF_OTHER_KINDS = [
    (kernel, variant)
    for kernel in SIMILARITY_KERNELS + ROW_KERNELS
    for variant in VARIANTS
    if not (kernel == "store_gradient_exact" and variant.startswith("kept"))
]
IN_FULL_TIER = [name for name in VARIANTS if name not in ("labels", "float32", "loss")]
# Those that are not rare.
FREQUENT = [name for name in VARIANTS if name != "labels"]
# Some kernels leave a register or two to the stack, with Triton 3.6 to 3.8 a few.
SPILLED_BYTES = 8 if Version(version("triton")) >= Version("3.9") else 16
# Kernels that have anything to do for unusual features alone.
RARE = ["store_gradient_exact", "log_sum_exps", "clip_loss"]


def is_left_to_full_tier(kernel: str, variant: str) -> bool:
    """The rare kernels are those that take longest to compile."""
    return kernel in RARE and variant in IN_FULL_TIER


@pytest.fixture(scope="module")
def assembly() -> Iterator[Figures]:
    """What a kernel becomes."""
    with compiler("triton_assembly.py") as figures:
        yield figures


@pytest.mark.parametrize("machine", ASSEMBLY_TARGETS)
@pytest.mark.parametrize(("kernel", "objective"), CALLS)
def test_a_tile_stays_in_registers_and_shared_memory(
    assembly: Figures, kernel: str, objective: str, machine: str
) -> None:
    found = assembly("call", kernel, machine, objective)
    # The exact G must be cut as the usual one is, whose tile is too large for it; it runs rarely.
    assert found["spills"] <= SPILLED_BYTES or kernel == "store_gradient_exact"
    assert found["shared"] <= SHARED_MEMORY[machine]


@pytest.mark.parametrize("machine", ASSEMBLY_TARGETS)
@pytest.mark.parametrize("kernel", SIMILARITY_KERNELS)
def test_matrix_units_multiply(assembly: Figures, kernel: str, machine: str) -> None:
    assert assembly("call", kernel, machine, "clip")["matrix_instructions"] > 0


@pytest.mark.parametrize("machine", COPY_ENGINES)
@pytest.mark.parametrize("kernel", BY_COPY_ENGINE)
def test_the_copy_engine_brings_the_operands(assembly: Figures, kernel: str, machine: str) -> None:
    assert assembly("call", kernel, machine, "clip")["tile_copies"] > 0


@pytest.mark.parametrize("machine", ASSEMBLY_TARGETS)
@pytest.mark.parametrize("kernel", TILED_BY_OBJECTIVE)
@pytest.mark.parametrize("objective", ["clip", *OBJECTIVES])
def test_a_logit_takes_one_exponential(
    assembly: Figures, kernel: str, machine: str, objective: str
) -> None:
    found = assembly("call", kernel, machine, objective)
    assert found["exponentials"] == found["logits_per_thread"]


@pytest.mark.parametrize(
    ("kernel", "variant"),
    [
        pytest.param(*call, marks=pytest.mark.full if is_left_to_full_tier(*call) else ())
        for call in CALLS_OF_OTHER_KINDS
    ],
)
def test_calls_of_other_kinds_compile(assembly: Figures, kernel: str, variant: str) -> None:
    found = assembly("variant", kernel, variant)
    assert found["shared"] <= SHARED_MEMORY["sm_90"]
    is_exempt = variant not in FREQUENT or kernel in RARE
    assert is_exempt or found["spills"] <= 16  # a register or two
