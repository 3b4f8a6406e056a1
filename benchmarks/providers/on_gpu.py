"""Who is measured on a GPU: mmcore's Triton kernels, torch, and the rivals that are published."""

from functools import partial

import torch

from cases import Case
from gpu_device import Device
from inputs import DTYPES, Mode
from mmcore.bench.catalogue.contrastive import clip_of_one_product
from providers.chunked import (
    build_lean_linear_cross_entropy,
    build_linear_cross_entropy,
    require_linear_cross_entropy,
)
from providers.compiling import compiled
from providers.gpu_rivals import (
    build_inf_cl,
    build_lean_siglip_kernel,
    build_liger,
    build_siglip_kernel,
    require_inf_cl,
    require_liger,
    require_siglip_kernel,
)
from providers.ours import mmcore_function, settings
from providers.plain import build_compiled, build_eager
from providers.provider import Built, Provider, TimeCall

# No loss: the product alone, beside which the forward stands.
PRODUCT_ALONE = "torch-mm"
OURS = "mmcore-triton"
CHUNKS = (1024, 4096, 16384)
# Sums and other O(N + M), beside G.
ROOM_BESIDE_THE_MATRIX = 64 * 2**20


def gpu_providers(device: Device, time_call: TimeCall) -> tuple[Provider, ...]:
    """Every way to compute every operation; mmcore's first, packages last."""
    ours = (partial(require_triton, device.name),)
    on_gpu = (partial(require_gpu, device.name),)
    chunked = partial(build_linear_cross_entropy, chunks=CHUNKS, time_call=time_call)
    in_chunks = (require_linear_cross_entropy,)
    plain = ("clip", "siglip", "nt_xent", "sup_con", "project", "l2_normalize")
    pairs = ("clip", "siglip")
    similarities = (*pairs, "nt_xent", "sup_con")
    return (
        *(Provider(OURS, op, build_ours, ours) for op in plain),
        *(Provider(f"{OURS}-lean", op, build_ours_lean, ours) for op in similarities),
        *(Provider(f"{OURS}-roomy", op, build_ours_roomy, ours) for op in pairs),
        Provider(PRODUCT_ALONE, "clip", build_product_alone, has_same_gradients=False),
        *(Provider("torch-eager", op, build_eager) for op in plain),
        *(Provider("torch-compile", op, build_compiled, on_gpu) for op in plain),
        Provider("torch-compile-one-product", "clip", build_compiled_one_product, on_gpu),
        Provider(
            "torch-linear-cross-entropy",
            "clip",
            chunked,
            in_chunks,
            build_lean_linear_cross_entropy,
        ),
        Provider(
            "siglip_kernel",
            "siglip",
            partial(build_siglip_kernel, time_call=time_call),
            (*on_gpu, require_siglip_kernel),
            build_lean_siglip_kernel,
        ),
        Provider("liger_kernel", "clip", build_liger, (*on_gpu, require_liger)),
        Provider("inf_cl", "clip", build_inf_cl, (*on_gpu, require_inf_cl)),
    )


def require_triton(device: str) -> None:
    """mmcore imports, and its Triton kernels serve a call."""
    import mmcore.functional

    mmcore.functional.l2_normalize(torch.ones(1, 8, device=device), backend="triton")


def require_gpu(device: str) -> None:
    """Triton's interpreter serves mmcore's kernels alone."""
    if device == "cpu":
        raise RuntimeError("needs a GPU")


def build_ours(case: Case, mode: Mode) -> Built:
    """With the workspace that mmcore has by default."""
    return Built(mmcore_function(case, backend="triton"), settings())


def build_ours_lean(case: Case, mode: Mode) -> Built:
    """With nothing kept, and chunks of the matrix as small as they get."""
    return within_workspace(case, 0)


def build_ours_roomy(case: Case, mode: Mode) -> Built:
    """With room for the whole of G, for as much kept of the forward, and for every gradient."""
    itemsize = DTYPES[case.dtype].itemsize
    gradients = 2 * case.rows * case.width * torch.float32.itemsize
    matrix = case.rows**2 * itemsize
    return within_workspace(case, 2 * matrix + gradients + ROOM_BESIDE_THE_MATRIX)


def within_workspace(case: Case, size: int) -> Built:
    """mmcore with a workspace of `size` bytes over forward and backward."""
    function = mmcore_function(case, backend="triton")
    return Built(function, settings(f"workspace={size}"), workspace=size)


def build_product_alone(case: Case, mode: Mode) -> Built:
    """x·yᵀ by the vendor's library, stored in the dtype of the case."""

    def product(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, y.T)

    return Built(product)


def build_compiled_one_product(case: Case, mode: Mode) -> Built:
    """torch.compile of the form with one product, which is faster or slower than that with two."""
    return compiled(clip_of_one_product)
