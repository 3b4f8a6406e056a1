"""Published GPU kernels for contrastive losses: Inf-CL, siglip-kernel, Liger Kernel.

They are imported where they are installed, and called as their documentation calls them.
"""

import torch

from cases import Case
from inputs import Mode
from measure import Function, time_call_ms
from providers.provider import Built, TimeCall, fastest

# Its kernels take the columns in heads of as many.
INF_CL_HEAD = 256
# 0 is its own choice; its documentation calls 1024 the leanest.
SIGLIP_KERNEL_CHUNKS = (0, 8192, 16384)
SIGLIP_KERNEL_LEAN_CHUNK = 1024


# ---- Inf-CL


def require_inf_cl() -> None:
    """The package inf_cl."""
    import inf_cl  # noqa: F401


def build_inf_cl(case: Case, mode: Mode) -> Built:
    """Its way on one GPU, which has one direction: two calls. It widens to float32 itself."""
    from inf_cl import cal_flash_loss

    if case.width % INF_CL_HEAD:
        raise ValueError(f"needs a width that is a multiple of {INF_CL_HEAD}, got {case.width}")

    def clip_loss(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        of_rows = cal_flash_loss(x, y, scale=scale, head_dim=INF_CL_HEAD).mean()
        of_columns = cal_flash_loss(y, x, scale=scale, head_dim=INF_CL_HEAD).mean()
        return (of_rows + of_columns) / 2

    return Built(clip_loss)


# ---- siglip-kernel


def require_siglip_kernel() -> None:
    """The package siglip_kernel."""
    import siglip_kernel  # noqa: F401


def siglip_kernel_loss(chunk_size: int) -> Function:
    """Its chunks of 16-bit products, `chunked_bf16`, which are its fastest way on Hopper."""
    from siglip_kernel import fused_chunked_bf16_siglip_loss

    def siglip_loss(
        x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        loss: torch.Tensor = fused_chunked_bf16_siglip_loss(
            x, y, scale.log(), bias, chunk_size=chunk_size
        )
        return loss

    return siglip_loss


def build_siglip_kernel(case: Case, mode: Mode, time_call: TimeCall = time_call_ms) -> Built:
    """The fastest of its own choice of chunks and of larger ones."""
    candidates = {}
    for chunk in SIGLIP_KERNEL_CHUNKS:
        if chunk <= case.rows:
            options = f"backend=chunked_bf16, chunk_size={chunk or 'auto'}"
            candidates[options] = Built(siglip_kernel_loss(chunk), options)
    return fastest(candidates, case, mode, time_call)


def build_lean_siglip_kernel(case: Case, mode: Mode) -> Built:
    """The chunks that its documentation calls the leanest."""
    chunk = SIGLIP_KERNEL_LEAN_CHUNK
    return Built(siglip_kernel_loss(chunk), f"backend=chunked_bf16, chunk_size={chunk}")


# ---- Liger Kernel


def require_liger() -> None:
    """The package liger_kernel."""
    import liger_kernel  # noqa: F401


def build_liger(case: Case, mode: Mode) -> Built:
    """LigerFusedLinearCrossEntropyLoss in both directions: one side is the weight of the other."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    cross_entropy = LigerFusedLinearCrossEntropyLoss()

    def clip_loss(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        target = torch.arange(x.shape[0], device=x.device)
        of_rows: torch.Tensor = cross_entropy(y, scale * x, target)
        return (of_rows + cross_entropy(x, scale * y, target)) / 2

    return Built(clip_loss)
