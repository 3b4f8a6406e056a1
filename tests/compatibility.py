"""What works with what: the table of docs/compatibility.md, and which test proves each cell.

.venv/bin/python tests/compatibility.py        writes the table into the page
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
BEGIN, END = "<!-- table of tests/compatibility.py -->\n", "<!-- end of the table -->\n"
COLUMNS = ("objectives and their ops", "`project`, `l2_normalize`, their modules", "metrics")


class Cell(NamedTuple):
    """What the page says, and the tests that fail where it is wrong."""

    says: str
    proofs: tuple[str, ...]


def yes(*proofs: str, says: str = "yes") -> Cell:
    return Cell(says, proofs)


def no(*proofs: str) -> Cell:
    return Cell("no", proofs)


class Row(NamedTuple):
    """A feature of torch."""

    feature: str
    objectives: Cell
    projection: Cell
    metrics: Cell
    way_out: str = ""  # where a cell says no, or not quite: the error, and what to do

    def cells(self) -> tuple[Cell, Cell, Cell]:
        return self.objectives, self.projection, self.metrics


# Metrics detach their inputs.
CONSTANT = Cell("no gradient", ("test_compatibility.py::test_metrics_have_no_gradient",))


def of(file: str) -> str:
    return f"test_{file}.py::test_"


HERE, EXPORT, TRANSFORMS = of("compatibility"), of("export"), of("transforms")
WRAPPERS = of("wrappers")
TRACING, AUTOCAST, NUMBERS = of("tracing"), of("autocast"), of("numbers")
PROCESSES, GROUP = of("several_processes"), of("process_group")
IN_PLACE = of("in_place")

AUTOGRAD = [
    Row("`torch.no_grad()`, `torch.inference_mode()`", *[yes(f"{HERE}calls_without_a_graph")] * 3),
    Row(
        "gradients of every input",
        yes(f"{of('objectives')}objectives_composed_of_ops"),
        yes(f"{of('projection')}gradients_in_float64"),
        CONSTANT,
    ),
    Row(
        "`torch.func`: `grad`, `vjp`, `vmap` of them",
        yes(
            f"{TRANSFORMS}objectives_under_grad_and_vmap", f"{TRACING}vmap_over_the_scale",
            says="yes, over the scale too; a loop",
        ),
        yes(f"{TRANSFORMS}vmap_of_grad_is_a_loop_over_the_batch", says="yes; a loop"),
        yes(f"{HERE}vmap_of_metrics"),
    ),
    Row(
        "`torch.func`: `jacrev`, `functional_call`",
        *[yes(f"{HERE}jacrev_and_functional_call")] * 2, CONSTANT,
    ),
    Row(
        "second derivatives, `torch.func.hessian`",
        *[no(f"{TRANSFORMS}a_second_derivative_is_an_error_not_a_zero")] * 2, CONSTANT,
        "NotImplementedError “cannot be differentiated a second time”: the plain formula of the "
        "docstring has them.",
    ),
    Row(
        "forward mode: `torch.func.jvp`, `jacfwd`",
        *[no(f"{TRANSFORMS}forward_mode_is_an_error_not_a_zero")] * 2, CONSTANT,
        "An error of torch that names `jvp`: use `vjp` and `jacrev`.",
    ),
    Row(
        "`torch.utils.checkpoint`, both kinds",
        *[yes(
            f"{of('checkpoint')}a_backward_outside_of_the_block",
            f"{of('checkpoint')}a_block_inside_of_what_is_checkpointed_has_the_same_bits",
        )] * 2,
        CONSTANT,
        "What is computed again reads `mmcore.backend` at the time of the backward: put the "
        "backward into the block, or the block into what is checkpointed, "
        "`checkpoint(mmcore.backend(\"reference\")(layer), x)`.",
    ),
    Row(
        "`torch.autograd.graph.save_on_cpu` and other hooks",
        *[yes(f"{HERE}saved_tensors_go_through_hooks")] * 2, CONSTANT,
    ),
    Row(
        "in-place operations on the result",
        yes(
            f"{IN_PLACE}a_loss_is_divided_in_place",
            f"{IN_PLACE}a_result_that_no_backward_reads_changes_in_place",
        ),
        yes(
            f"{IN_PLACE}relu_in_place_behind_a_head",
            f"{IN_PLACE}rows_of_unit_length_must_stay_as_they_are",
            says="with `normalize=False`",
        ),
        yes(*CONSTANT.proofs),
        "The backward of `l2_normalize`, of `project` with `normalize=True` and of log-sum-exps "
        "reads the result: do not change it in place. RuntimeError of autograd “modified by an "
        "inplace operation”: `ReLU(inplace=False)`.",
    ),
]  # fmt: skip

# Metrics take more a part at a time, and an exported graph has a fixed number of parts.
FEW_ROWS = "up to 8,192 rows if their number varies"

TRACED = [
    Row(
        "`torch.compile(fullgraph=True)`",
        yes(f"{of('objectives')}every_objective_compiles_to_one_graph"),
        yes(f"{of('contracts')}modules_compile"),
        yes(f"{HERE}metrics_compile_and_export"),
    ),
    Row(
        "a batch that varies under `torch.compile`",
        yes(
            f"{of('compilations')}any_number_of_sizes_takes_two_compilations",
            says="at most two compilations",
        ),
        *[yes(
            f"{HERE}heads_and_metrics_compile_twice_at_most", says="at most two compilations"
        )] * 2,
    ),
    Row(
        "`torch.export`",
        yes(f"{EXPORT}an_objective_is_exported"),
        yes(f"{EXPORT}a_head_is_exported_for_any_number_of_rows"),
        yes(f"{HERE}metrics_compile_and_export", says=FEW_ROWS),
    ),
    Row(
        "AOTInductor",
        *[yes(f"{EXPORT}a_model_goes_through_aotinductor")] * 2,
        yes(f"{EXPORT}a_model_goes_through_aotinductor", says=FEW_ROWS),
    ),
    Row(
        "`torch.onnx.export`",
        no(f"{EXPORT}onnx_refuses_what_has_no_decomposition"),
        yes(f"{EXPORT}onnx_has_standard_operators", f"{EXPORT}the_decomposition_has_no_op_of_ours"),
        no(f"{EXPORT}onnx_refuses_what_has_no_decomposition"),
        "An error of torch's exporter: export the encoders and heads, without losses and metrics.",
    ),
    Row(
        "meta tensors, `FakeTensorMode`",
        yes(f"{TRACING}meta_tensors_have_shapes", f"{TRACING}fake_tensors"),
        *[yes(f"{TRACING}everything_else_on_meta_and_fake_tensors")] * 2,
    ),
    Row(
        "`make_fx`",
        yes(f"{TRACING}make_fx_records_a_call_and_its_gradients"),
        *[yes(f"{HERE}make_fx_records_heads_and_metrics")] * 2,
    ),
    Row(
        "`torch.fx.symbolic_trace`",
        yes(
            f"{EXPORT}a_symbolic_trace_records_our_functions",
            f"{EXPORT}a_symbolic_trace_of_a_loss_names_the_way_out",
            says="functions; loss modules as leaves",
        ),
        *[yes(f"{EXPORT}a_symbolic_trace_records_our_functions")] * 2,
        "TypeError “got a Proxy”: call functions by their whole name, "
        "`mmcore.functional.clip_loss`; let `Tracer.is_leaf_module` say yes to modules of mmcore.",
    ),
    Row(
        "`torch.jit.trace`",
        yes(f"{EXPORT}an_objective_is_recorded_or_refused", says="values; no D×D matrices"),
        yes(
            f"{EXPORT}a_recorded_head_is_saved_and_serves_any_number_of_rows", says="values"
        ),
        yes(f"{EXPORT}metrics_are_recorded"),
        "A recording has no gradient, and NotImplementedError says so. Objectives over D×D "
        "matrices (docs/objectives/gram.md) cannot be recorded: `torch.export.export`.",
    ),
    Row(
        "`torch.jit.script`",
        *[no(f"{EXPORT}script_is_refused_with_the_way_out")] * 3,
        "NotImplementedError: `torch.jit.trace`, or `torch.export.export`.",
    ),
    Row(
        "`FlopCounterMode`",
        yes(f"{of('flops')}flops_of_an_objective"),
        yes(f"{of('flops')}flops_are_those_of_the_gradients_that_are_wanted"),
        yes(f"{of('flops')}flops_of_a_metric"),
    ),
]  # fmt: skip

NUMBERS_AND_LAYOUTS = [
    Row(
        "float64, float32, bfloat16, float16",
        yes(f"{WRAPPERS}objectives_of_every_dtype"),
        yes(f"{of('projection_dtypes')}project", f"{of('projection_dtypes')}l2_normalize"),
        yes(f"{of('metrics')}formulas"),
    ),
    Row(
        "`torch.autocast` to bfloat16 and float16",
        yes(f"{AUTOCAST}objectives_of_mixed_dtypes"),
        yes(
            f"{of('projection_dtypes')}autocast_multiplies_in_its_dtype_and_norms_in_float32",
            f"{AUTOCAST}a_head_of_float32_weights_takes_16_bits",
        ),
        yes(f"{AUTOCAST}metrics_of_mixed_dtypes"),
    ),
    Row("`torch.amp.GradScaler`", *[yes(f"{WRAPPERS}a_scaled_step")] * 2, CONSTANT),
    Row(
        "NumPy numbers as options",
        yes(f"{NUMBERS}options_of_numpy_are_numbers"),
        *[yes(f"{NUMBERS}other_options_of_numpy")] * 2,
    ),
    Row(
        "transposed and strided tensors",
        yes(f"{WRAPPERS}strided_features"),
        yes(f"{of('projection')}project_takes_transposed_and_strided_inputs"),
        yes(f"{WRAPPERS}strided_features"),
    ),
    Row(
        "`copy.deepcopy`, `pickle`, `state_dict`",
        *[yes(f"{WRAPPERS}modules_are_copied_and_saved")] * 2,
        yes(f"{WRAPPERS}modules_are_copied_and_saved", says="functions"),
    ),
]

OF_ALL = "rows of this process; of all with `process_group`"
METRICS_OF_ALL = yes(
    f"{WRAPPERS}metrics_of_this_process", f"{GROUP}metrics_over_ranks", says=OF_ALL
)
DISTRIBUTED = [
    Row(
        "`DistributedDataParallel`",
        yes(f"{PROCESSES}two_processes_equal_one", f"{GROUP}ranks_equal_one_process", says=OF_ALL),
        yes(f"{WRAPPERS}data_parallel_wrappers"),
        METRICS_OF_ALL,
    ),
    Row(
        "FSDP1, FSDP2",
        yes(f"{PROCESSES}gradients_of_clip_in_other_ways", says=OF_ALL),
        yes(f"{WRAPPERS}data_parallel_wrappers", f"{PROCESSES}fsdp_equals_one_process"),
        METRICS_OF_ALL,
    ),
    Row(
        "`DTensor` arguments",
        *[no(f"{EXPORT}a_tensor_of_a_mesh_is_refused_with_the_way_out")] * 3,
        "TypeError that names the argument: `.to_local()`, the part of this process, or "
        "`.full_tensor()`, the whole.",
    ),
]

GROUPS = {
    "Autograd": AUTOGRAD, "Tracing and export": TRACED, "Numbers and layouts": NUMBERS_AND_LAYOUTS,
    "Several processes": DISTRIBUTED,
}  # fmt: skip
ROWS = [row for group in GROUPS.values() for row in group]


def table() -> str:
    """The tables of the page: a table a group, and what to do where the answer is no."""
    parts = []
    for title, rows in GROUPS.items():
        lines = [f"## {title}", "", line("", *COLUMNS), "|---|---|---|---|"]
        lines += [line(row.feature, *(cell.says for cell in row.cells())) for row in rows]
        parts.append("\n".join(lines))
    lines = ["## Where it does not work, or not quite", ""]
    lines += [f"- {row.feature}: {row.way_out}" for row in ROWS if row.way_out]
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The page with this table in place of the one that it has."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
