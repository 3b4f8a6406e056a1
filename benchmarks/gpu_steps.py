"""What is measured on a GPU, the most important first: what there is no time for is left out."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from accuracy import measure_errors
from cases import Case, make_case
from gpu_kernels import run_kernels
from gpu_session import Session
from gpu_time import run_memory, run_time
from inputs import MODES, Mode
from providers import eager_function
from providers.on_gpu import OURS, PRODUCT_ALONE
from similarity_cases import ClipCase
from usual import PAIR_COSINE

FORWARD, FORWARD_AND_BACKWARD = MODES
SHOWN_FORWARD = (OURS, PRODUCT_ALONE, "torch-eager", "torch-compile")
SCALES = (1.0, 14.3, 100.0)
HUGE = ClipCase(4_194_304, 512, "bfloat16")
# Enough to compile the kernels of the huge case, which its own first call shall not do.
HUGE_WARM_UP_ROWS = 4096
SMOKE_ROWS, SMOKE_WIDTH, SMOKE_DIVISOR = (64, 128), 48, 512


@dataclass(frozen=True)
class Step:
    """One case, and what is done with it."""

    kind: str
    case: Case
    mode: Mode = FORWARD_AND_BACKWARD
    precision: str = "highest"
    names: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For example `time clip rows 32,768 width 512 scale 100 bfloat16 forward+backward`."""
        sizes = " ".join(f"{name} {size:,}" for name, size in self.case.shape.items())
        words = f"{self.kind} {self.case.op} {sizes} {self.case.dtype} {self.mode}"
        return words + (f" {self.precision}" if self.case.dtype == "float32" else "")

    def run(self, session: Session) -> None:
        """Measure and record."""
        if self.kind == "kernels":
            run_kernels(session, self.case)
        elif self.kind == "accuracy":
            run_accuracy(session, self.case)
        else:
            run_time(session, self.case, self.mode, self.precision, self.names)


def case_of(
    op: str, rows: int, width: int, dtype: str = "bfloat16", scale: float | None = None
) -> Case:
    """A case of usual numbers; `project` has 1024 columns before it."""
    return make_case(
        op,
        rows=rows,
        width=width,
        input_width=1024,
        dtype=dtype,
        scale=scale,
        pair_cosine=PAIR_COSINE,
    )


def steps() -> list[Step]:
    """Everything, in the order of importance."""

    def time(op: str, rows: int, width: int, **how: object) -> Step:
        return Step("time", case_of(op, rows, width), **how)

    def exact(precision: str) -> Step:
        return Step("time", case_of("clip", 8192, 512, "float32"), precision=precision)

    forward = {"mode": FORWARD, "names": SHOWN_FORWARD}
    return [
        time("clip", 32768, 512),
        time("siglip", 65536, 768),
        Step("kernels", case_of("clip", 32768, 512)),
        Step("kernels", case_of("siglip", 32768, 512)),
        time("clip", 32768, 512, **forward),
        time("clip", 32768, 768, **forward),
        time("clip", 65536, 768),
        *(
            Step("accuracy", case_of(op, 4096, 512, scale=scale))
            for op in ("clip", "siglip")
            for scale in SCALES
        ),
        *(time("clip", rows, 512) for rows in (1024, 4096, 256, 16384, 2048, 512, 8192)),
        *(time("siglip", rows, 512) for rows in (1024, 4096, 256, 16384, 2048, 512, 8192)),
        exact("highest"),
        exact("high"),
        time("project", 32768, 768),
        time("l2_normalize", 65536, 768),
        Step("kernels", case_of("l2_normalize", 65536, 768)),
        *(time("nt_xent", rows, 512) for rows in (16384, 1024, 4096)),
        time("sup_con", 16384, 512),
    ]


def smoke_steps() -> list[Step]:
    """The same at sizes that an interpreter can do, each once."""
    return list(dict.fromkeys(replace(step, case=shrunk(step.case)) for step in steps()))


def shrunk(case: Case) -> Case:
    """The case with few rows and columns."""
    fewest, most = SMOKE_ROWS
    rows = min(max(case.rows // SMOKE_DIVISOR, fewest), most)
    narrow = {"input_width": SMOKE_WIDTH} if case.op == "project" else {}
    return replace(case, rows=rows, width=SMOKE_WIDTH, **narrow)


def wanted(steps: Iterable[Step], words: Iterable[str]) -> list[Step]:
    """The steps in whose titles all words occur."""
    return [step for step in steps if all(word in step.title.split() for word in words)]


def run_accuracy(session: Session, case: Case) -> None:
    """Errors against float64 of everybody who computes in the case's dtype, eager's beside them."""
    mode, device = FORWARD_AND_BACKWARD, session.device.name
    eager = measure_errors({"": eager_function(case)}, case, device)[""]
    beside = {f"eager_{quantity}": error for quantity, error in eager.items()}
    for provider in session.providers(case.op):
        # The roomy and lean ways are held to the same errors by tests; compiling takes long.
        if "compile" in provider.name or provider.name.startswith(f"{OURS}-"):
            continue
        figures: dict[str, object] = {}

        def measure(provider=provider, figures=figures) -> None:
            for require in provider.requirements:
                require()
            built = (provider.build_lean or provider.build)(case, mode)
            figures.update(measure_errors({"": built.function}, case, device)[""])
            figures["options"] = built.options

        reason = session.attempt(provider.name, measure)
        if reason is None:
            session.record("accuracy", provider.name, case, {"mode": mode, **figures, **beside})
        else:
            session.skip("accuracy", provider.name, case, mode, reason)


def run_huge(session: Session) -> None:
    """Memory and one time of a batch whose matrix nobody could store; nothing else."""
    warm_up = replace(HUGE, rows=HUGE_WARM_UP_ROWS)
    for provider in session.providers(HUGE.op, (OURS, f"{OURS}-lean")):
        built = provider.build(HUGE, FORWARD_AND_BACKWARD)
        run_memory(session, provider, built, HUGE, FORWARD_AND_BACKWARD, warm_up)
