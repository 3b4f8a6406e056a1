"""F.linear_cross_entropy: torch's own way not to store the whole similarity matrix."""

import torch
import torch.nn.functional as F

from cases import Case
from inputs import Mode
from measure import Function, time_call_ms
from providers.provider import Built, TimeCall, fastest


def require_linear_cross_entropy() -> None:
    """torch ≥ 2.13 has the chunked form."""
    torch.nn.LinearCrossEntropyOptions  # noqa: B018


def linear_cross_entropy_clip(options: "torch.nn.LinearCrossEntropyOptions | None") -> Function:
    """Symmetric CLIP loss: linear_cross_entropy in both directions."""

    def clip_loss(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        target = torch.arange(x.shape[0], device=x.device)
        rows = F.linear_cross_entropy(scale * x, y, target, options=options)
        columns = F.linear_cross_entropy(scale * y, x, target, options=options)
        return (rows + columns) / 2

    return clip_loss


def build_linear_cross_entropy(
    case: Case,
    mode: Mode,
    chunks: tuple[int, ...] = (512, 1024, 2048),
    time_call: TimeCall = time_call_ms,
) -> Built:
    """The fastest of torch's own pick, several chunk sizes, and (while it fits) no chunks."""
    options: dict[str, torch.nn.LinearCrossEntropyOptions | None] = {
        "chunking_method=auto": torch.nn.LinearCrossEntropyOptions()
    }
    for chunk in chunks:
        if chunk <= case.rows:
            option = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
            options[f"batch_chunk_size={chunk}"] = option
    if case.rows <= 2048:
        options["options=None"] = None
    candidates = {
        name: Built(linear_cross_entropy_clip(each), name) for name, each in options.items()
    }
    return fastest(candidates, case, mode, time_call)


def build_lean_linear_cross_entropy(case: Case, mode: Mode) -> Built:
    """torch's own pick of the chunk, which is leaner than the fastest one."""
    options = torch.nn.LinearCrossEntropyOptions()
    return Built(linear_cross_entropy_clip(options), "chunking_method=auto")
