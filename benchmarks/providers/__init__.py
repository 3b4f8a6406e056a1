"""Who is measured: mmcore and its rivals, each given its best.

A provider turns a case into a function of the case's inputs. The rivals are the real thing: losses
come from the installed packages, linear_cross_entropy from the installed torch.
"""

from functools import partial

from cases import Case
from mmcore.bench.catalogue.packages import (
    lightly_losses,
    metric_learning_losses,
    open_clip_losses,
)
from providers.chunked import (
    build_lean_linear_cross_entropy,
    build_linear_cross_entropy,
    require_linear_cross_entropy,
)
from providers.compiling import require_compiler
from providers.ours import build_mmcore, build_mmcore_full, build_mmcore_lean, require_mmcore
from providers.packages import (
    build_compiled_loss,
    build_faster,
    lightly_nt_xent,
    metric_learning_nt_xent,
    metric_learning_sup_con,
)
from providers.plain import build_compiled, build_eager, eager_function
from providers.provider import Built, Provider

__all__ = [
    "PROVIDERS",
    "PROVIDER_NAMES",
    "Built",
    "Provider",
    "eager_function",
    "eager_provider",
    "providers_of",
]

OF_MMCORE = (require_mmcore,)
COMPILED = (require_compiler,)
OF_OPEN_CLIP = (open_clip_losses,)
OF_OPEN_CLIP_COMPILED = (open_clip_losses, require_compiler)

PROVIDERS = (
    Provider("mmcore-cpu", "clip", build_mmcore, OF_MMCORE),
    Provider("mmcore-cpu-lean", "clip", build_mmcore_lean, OF_MMCORE),
    Provider("torch-eager", "clip", build_eager, OF_OPEN_CLIP, matrices=5),
    Provider("torch-compile", "clip", build_compiled, OF_OPEN_CLIP_COMPILED, matrices=3),
    Provider(
        "torch-linear-cross-entropy",
        "clip",
        build_linear_cross_entropy,
        (require_linear_cross_entropy,),
        build_lean_linear_cross_entropy,
    ),
    Provider("mmcore-cpu", "siglip", build_mmcore, OF_MMCORE),
    Provider("mmcore-cpu-lean", "siglip", build_mmcore_lean, OF_MMCORE),
    Provider("torch-eager", "siglip", build_eager, OF_OPEN_CLIP, matrices=9),
    Provider("torch-compile", "siglip", build_compiled, OF_OPEN_CLIP_COMPILED, matrices=2),
    Provider("mmcore-cpu", "nt_xent", build_mmcore, OF_MMCORE),
    Provider("mmcore-cpu-full", "nt_xent", build_mmcore_full, OF_MMCORE),
    Provider("torch-eager", "nt_xent", build_eager, matrices=5),
    Provider("torch-compile", "nt_xent", build_compiled, COMPILED, matrices=2),
    Provider(
        "lightly",
        "nt_xent",
        partial(build_faster, lightly_nt_xent),
        (partial(lightly_losses, "ntx_ent_loss"), require_compiler),
        partial(build_compiled_loss, lightly_nt_xent),
        matrices=8,
        has_same_gradients=False,
    ),
    # Never eager: that is far slower and holds several cubes.
    Provider(
        "pytorch-metric-learning",
        "nt_xent",
        partial(build_compiled_loss, metric_learning_nt_xent),
        (metric_learning_losses, require_compiler),
        cubes=1.3,
    ),
    Provider("mmcore-cpu", "sup_con", build_mmcore, OF_MMCORE),
    Provider("mmcore-cpu-full", "sup_con", build_mmcore_full, OF_MMCORE),
    Provider("torch-eager", "sup_con", build_eager, matrices=8),
    Provider("torch-compile", "sup_con", build_compiled, COMPILED, matrices=2),
    Provider(
        "pytorch-metric-learning",
        "sup_con",
        partial(build_faster, metric_learning_sup_con),
        (metric_learning_losses, require_compiler),
        partial(build_compiled_loss, metric_learning_sup_con),
        matrices=14,
    ),
    Provider("mmcore-cpu", "project", build_mmcore, OF_MMCORE),
    Provider("torch-eager", "project", build_eager),
    Provider("torch-compile", "project", build_compiled, COMPILED),
    Provider("mmcore-cpu", "l2_normalize", build_mmcore, OF_MMCORE),
    Provider("torch-eager", "l2_normalize", build_eager),
    Provider("torch-compile", "l2_normalize", build_compiled, COMPILED),
)
PROVIDER_NAMES = tuple(dict.fromkeys(provider.name for provider in PROVIDERS))


def providers_of(op: str, names: tuple[str, ...] = PROVIDER_NAMES) -> list[Provider]:
    """The providers of an operation, in the order of the list."""
    return [each for each in PROVIDERS if each.op == op and each.name in names]


def eager_provider(case: Case) -> Provider:
    """The eager rival: in float64, the yardstick of every error."""
    (provider,) = providers_of(case.op, ("torch-eager",))
    return provider
