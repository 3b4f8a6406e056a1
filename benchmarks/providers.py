"""Who is measured: mmcore and its rivals, each given its best.

A provider turns a case into a function of the case's inputs. The rivals are the real thing:
open_clip's loss comes from the installed open_clip, linear_cross_entropy from the installed torch.
"""

import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from cases import DTYPES, Case, Mode
from measure import Function, time_call_ms


@dataclass(frozen=True)
class Built:
    """A function of the case's inputs, and the settings it was built with."""

    function: Function
    options: str = ""


@dataclass(frozen=True)
class Provider:
    """One way to compute one operation."""

    name: str
    op: str
    build: Callable[[Case, Mode], Built]
    # Raises with the reason where this provider cannot run.
    require: Callable[[], object]
    # Where `build` searches for the fastest settings: the leanest, for memory and accuracy.
    build_lean: Callable[[Case, Mode], Built] | None = None
    # N×N matrices held at once over forward and backward, as `--memory` measured; 0: none.
    square_matrices: int = 0

    def unavailable_reason(self) -> str | None:
        """Why this provider cannot run here; None where it can."""
        try:
            self.require()
        except (ImportError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def peak_estimate_bytes(self, case: Case) -> int:
        """A rough peak, only good for refusing what cannot fit in memory."""
        return self.square_matrices * case.rows**2 * DTYPES[case.dtype].itemsize


# ---- mmcore

MMCORE_SETTINGS = ("MMCORE_CPU_ISA", "MMCORE_WORKSPACE")


def require_mmcore() -> None:
    """mmcore imports, and its compiled CPU kernels serve a call."""
    import mmcore.functional

    mmcore.functional.l2_normalize(torch.ones(1, 8), backend="cpu")


def build_mmcore(case: Case, mode: Mode) -> Built:
    """A function of mmcore.functional on the compiled CPU kernels, never on a fallback."""
    import mmcore.functional

    function: Function = {
        "clip": mmcore.functional.clip_loss,
        "project": functools.partial(mmcore.functional.project, norm="layer"),
        "l2_normalize": mmcore.functional.l2_normalize,
    }[case.op]
    settings = [f"{name}={os.environ[name]}" for name in MMCORE_SETTINGS if name in os.environ]
    return Built(functools.partial(function, backend="cpu"), ", ".join(settings))


# ---- plain torch, eager and compiled


@functools.cache
def open_clip_loss() -> Function:
    """open_clip's ClipLoss, loaded from its loss.py alone: the package wants torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise ImportError("open_clip is missing: pip install --no-deps open_clip_torch")
    path = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    if spec is None or spec.loader is None:
        raise ImportError("the installed open_clip has no loss.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks its globals up by module name
    spec.loader.exec_module(module)
    loss = module.ClipLoss()

    def clip_loss(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = loss(x, y, scale)
        return value

    return clip_loss


def project_in_torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
) -> torch.Tensor:
    """A projection head as one writes it in torch."""
    normed = F.layer_norm(x, (x.shape[1],), norm_weight, norm_bias)
    return F.normalize(F.linear(normed, weight, bias), dim=1)


def l2_normalize_in_torch(x: torch.Tensor) -> torch.Tensor:
    """F.normalize over rows."""
    return F.normalize(x, dim=1)


def eager_function(op: str) -> Function:
    """The eager rival of an operation; run in float64 it is the yardstick of every error."""
    if op == "clip":
        return open_clip_loss()
    return project_in_torch if op == "project" else l2_normalize_in_torch


def build_eager(case: Case, mode: Mode) -> Built:
    """The eager rival as it is."""
    return Built(eager_function(case.op))


def require_compiler() -> None:
    """A C++ compiler, without which torch.compile cannot serve a CPU."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"torch.compile needs a C++ compiler, {compiler} is not found")


def require_open_clip_and_compiler() -> None:
    """What the compiled ClipLoss needs."""
    open_clip_loss()
    require_compiler()


def build_compiled(case: Case, mode: Mode) -> Built:
    """torch.compile of the eager rival, specialised to this very shape.

    mode="max-autotune" was tried on a CPU at N = 512 to 4096 and gained nothing.
    """
    # A fresh start per case: else the recompile limit would drop later shapes back to eager.
    torch.compiler.reset()
    return Built(torch.compile(eager_function(case.op), dynamic=False, fullgraph=True))


# ---- F.linear_cross_entropy


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


def build_linear_cross_entropy(case: Case, mode: Mode) -> Built:
    """The fastest of torch's own pick, several chunk sizes, and (while it fits) no chunks.

    The best chunk moves with N, so it is sought for every case, outside the timed rounds.
    """
    candidates = {"chunking_method=auto": torch.nn.LinearCrossEntropyOptions()}
    for chunk in (512, 1024, 2048):
        if chunk <= case.rows:
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
            candidates[f"batch_chunk_size={chunk}"] = options
    functions = {name: linear_cross_entropy_clip(each) for name, each in candidates.items()}
    if case.rows <= 2048:
        functions["options=None"] = linear_cross_entropy_clip(None)
    best_ms = dict.fromkeys(functions, float("inf"))
    for seed in range(3):
        for name, function in functions.items():
            best_ms[name] = min(best_ms[name], time_call_ms(function, case, mode, seed))
    best = min(best_ms, key=lambda name: best_ms[name])
    return Built(functions[best], best)


def build_lean_linear_cross_entropy(case: Case, mode: Mode) -> Built:
    """torch's own pick of the chunk, which is leaner than the fastest one."""
    options = torch.nn.LinearCrossEntropyOptions()
    return Built(linear_cross_entropy_clip(options), "chunking_method=auto")


# ---- the list


def nothing_required() -> None:
    """Plain torch is always there."""


PROVIDERS = (
    Provider("mmcore-cpu", "clip", build_mmcore, require_mmcore),
    Provider("torch-eager", "clip", build_eager, open_clip_loss, square_matrices=5),
    Provider(
        "torch-compile", "clip", build_compiled, require_open_clip_and_compiler, square_matrices=3
    ),
    Provider(
        "torch-linear-cross-entropy",
        "clip",
        build_linear_cross_entropy,
        require_linear_cross_entropy,
        build_lean_linear_cross_entropy,
    ),
    Provider("mmcore-cpu", "project", build_mmcore, require_mmcore),
    Provider("torch-eager", "project", build_eager, nothing_required),
    Provider("torch-compile", "project", build_compiled, require_compiler),
    Provider("mmcore-cpu", "l2_normalize", build_mmcore, require_mmcore),
    Provider("torch-eager", "l2_normalize", build_eager, nothing_required),
    Provider("torch-compile", "l2_normalize", build_compiled, require_compiler),
)
PROVIDER_NAMES = tuple(dict.fromkeys(provider.name for provider in PROVIDERS))


def providers_of(op: str, names: tuple[str, ...] = PROVIDER_NAMES) -> list[Provider]:
    """The providers of an operation, in the order of the list."""
    return [each for each in PROVIDERS if each.op == op and each.name in names]
