"""A provider: one way to compute one operation, and how to get its best out of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cases import Case
from inputs import DTYPES, Mode
from measure import Function, time_call_ms

# Milliseconds of one call of a function on inputs of this seed.
TimeCall = Callable[[Function, Case, Mode, int], float]


@dataclass(frozen=True)
class Built:
    """A function of the case's inputs, and the settings it was built with."""

    function: Function
    options: str = ""
    # Compiled for the very shape of the case at the first call.
    is_compiled: bool = False
    # mmcore.workspace in force over forward and backward; None leaves it as it is.
    workspace: int | None = None


@dataclass(frozen=True)
class Provider:
    """One way to compute one operation."""

    name: str
    op: str
    build: Callable[[Case, Mode], Built]
    # Each raises with the reason where this provider cannot run.
    requirements: tuple[Callable[[], object], ...] = ()
    # Where `build` searches for the fastest settings: the leanest, for memory and accuracy.
    build_lean: Callable[[Case, Mode], Built] | None = None
    # N×N matrices and N×N×N cubes held at once over forward and backward, as `--memory` measured.
    matrices: float = 0.0
    cubes: float = 0.0
    # Some rivals normalise rows once more: the value is the same, the gradients are not.
    has_same_gradients: bool = True

    @property
    def is_mmcore(self) -> bool:
        """Whether this is one of mmcore's own ways."""
        return self.name.startswith("mmcore")

    def unavailable_reason(self) -> str | None:
        """Why this provider cannot run here; None where it can."""
        try:
            for require in self.requirements:
                require()
        except (ImportError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def peak_estimate_bytes(self, case: Case) -> int:
        """A rough peak, only good for refusing what cannot fit in memory."""
        numbers = self.matrices * case.rows**2 + self.cubes * case.rows**3
        return int(numbers * DTYPES[case.dtype].itemsize)


def fastest(
    candidates: Mapping[str, Built],
    case: Case,
    mode: Mode,
    time_call: TimeCall = time_call_ms,
) -> Built:
    """The candidate with the fastest of three calls, its name among its options.

    What is fastest moves with N, so it is sought for every case, outside the timed rounds.
    """
    best_ms = dict.fromkeys(candidates, float("inf"))
    for seed in range(3):
        for name, built in candidates.items():
            best_ms[name] = min(best_ms[name], time_call(built.function, case, mode, seed))
    return candidates[min(best_ms, key=lambda name: best_ms[name])]
