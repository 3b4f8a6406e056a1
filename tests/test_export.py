"""Leaving Python: torch.export, ONNX, AOTInductor, TorchScript, torch.fx; and tensors of a mesh."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from objective_cases import Call, every_case
from torch import Tensor, nn

import mmcore
from mmcore import functional, metrics
from mmcore.bench.catalogue import ROWS, Case

NORMS = ("layer", "rms", None)
WAY_OUT = r"torch\.export\.export"
ignore_deprecation = pytest.mark.filterwarnings("ignore::DeprecationWarning")
every_norm = pytest.mark.parametrize("norm", NORMS)
every_objective = every_case([row.cases()[0] for row in ROWS.values()])


def head(norm: str | None = "layer") -> mmcore.nn.ProjectionHead:
    return mmcore.nn.ProjectionHead(16, 8, norm=norm)


def rows(count: int = 5) -> Tensor:
    return torch.randn(count, 16)


class OfCase(nn.Module):
    """A case of the catalogue: a module of its leaves."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.call = Call.of(case, 8, 8, scale=5.0)
        self.leaves = tuple(self.call.leaves.values())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.call.function(*tensors)


class Model(nn.Module):
    """An encoder with a head, and a loss that it computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(16, 16), head()
        self.normalize = mmcore.nn.L2Normalize()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        image, text = self.head(self.encoder(x)), self.normalize(self.encoder(y)[:, :8])
        loss = mmcore.functional.clip_loss(image, text, 5.0)
        gap = mmcore.metrics.modality_gap(image, text).float()
        return loss + gap + mmcore.functional.multimodal_loss({"a": image, "b": text}, 2.0)


# torch.export


@every_norm
def test_a_head_is_exported_for_any_number_of_rows(norm: str | None) -> None:
    """Catches a fake or a check that fixes the number of rows."""
    module = head(norm)
    shapes = ({0: torch.export.Dim("rows")},)
    exported = torch.export.export(module, (rows(),), dynamic_shapes=shapes).module()
    for count in (2, 5, 11):
        x = rows(count)
        assert torch.equal(exported(x), module(x))


@every_objective
def test_an_objective_is_exported(case: Case) -> None:
    """Catches a check of values, or a Function, that torch.export cannot trace."""
    module = OfCase(case)
    exported = torch.export.export(module, module.leaves).module()
    torch.testing.assert_close(exported(*module.leaves), module(*module.leaves))


@every_norm
def test_the_decomposition_has_no_op_of_ours(norm: str | None) -> None:
    """Catches an op that an exporter meets and does not know; it needs no package."""
    names = ("project", "l2_normalize")
    ops = [getattr(torch.ops.mmcore, name).default for name in names]
    model = nn.Sequential(head(norm), mmcore.nn.L2Normalize())
    shapes = ({0: torch.export.Dim("rows")},)
    program = torch.export.export(model, (rows(),), dynamic_shapes=shapes)
    program = program.run_decompositions(torch._decomp.get_decompositions(ops))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in targets if name.startswith("mmcore")]
    x = rows(9)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_goes_through_aotinductor(tmp_path: Path) -> None:
    """Catches an op that compiled code cannot call. It starts a C++ compiler."""
    module, shapes = Model(), ({0: torch.export.Dim("rows", max=8192)},) * 2
    with torch.no_grad():
        program = torch.export.export(module, (rows(), rows()), dynamic_shapes=shapes)
        package = str(tmp_path / "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=package)
        x, y = rows(9), rows(9)
        found = torch._inductor.aoti_load_package(package)(x, y)
        torch.testing.assert_close(found, module(x, y))


# ONNX


def onnx_of(module: nn.Module, x: Tensor) -> Any:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    shapes = ({0: torch.export.Dim("rows")},)
    program = torch.onnx.export(module, (x,), dynamic_shapes=shapes, verbose=False)
    assert program is not None
    return program.model_proto


@ignore_deprecation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "module", [head("layer"), head("rms"), head(None), mmcore.nn.L2Normalize()]
)
def test_onnx_has_standard_operators(module: nn.Module, dtype: torch.dtype) -> None:
    """Catches an op of our own in an ONNX graph, a fixed number of rows, and other numbers."""
    module = copy.deepcopy(module).eval().to(dtype)
    model = onnx_of(module, rows().to(dtype))
    assert {node.domain for node in model.graph.node} == {""}
    from onnx.reference import ReferenceEvaluator

    x = rows(9).to(dtype)
    (found,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(x).detach())


@ignore_deprecation
@pytest.mark.parametrize(
    "function", [lambda x: functional.clip_loss(x, x.flip(0), 2.0), mmcore.metrics.effective_rank]
)
def test_onnx_refuses_what_has_no_decomposition(function: Callable[[Tensor], Tensor]) -> None:
    """Catches an exporter that writes an op which nothing can run."""

    class Of(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    with pytest.raises(torch.onnx.errors.OnnxExporterError):
        torch.onnx.export(Of(), (rows(),), verbose=False)


# TorchScript


def loaded_again(recorded: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(recorded, file)
    file.seek(0)
    return torch.jit.load(file)


@ignore_deprecation
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_norm
def test_a_recorded_head_is_saved_and_serves_any_number_of_rows(norm: str | None) -> None:
    """Catches a Function in a recording, which TorchScript cannot save."""
    module = head(norm)
    recorded = loaded_again(torch.jit.trace(module, (rows(),)))
    x = rows(9)
    assert torch.equal(recorded(x), module(x))
    with pytest.raises(NotImplementedError, match=r"has no gradient: call mmcore\.functional"):
        recorded(x).sum().backward()


@ignore_deprecation
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_objective
def test_an_objective_is_recorded_or_refused(case: Case) -> None:
    """Catches a check of sizes, tensors in a recording, and an error that names no way out."""
    module = OfCase(case)
    if case.row.gram_products is not None:
        with pytest.raises(NotImplementedError, match=WAY_OUT):
            torch.jit.trace(module, module.leaves)
        return
    recorded = loaded_again(torch.jit.trace(module, module.leaves))
    torch.testing.assert_close(recorded(*module.leaves), module(*module.leaves))


@ignore_deprecation
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_metrics_are_recorded() -> None:
    """Catches a metric that reads a number on the host."""

    def measured(x: Tensor, y: Tensor) -> Tensor:
        several = (metrics.modality_gap, metrics.linear_cka, metrics.linear_separability)
        return torch.stack([each(x, y) for each in several] + [metrics.effective_rank(x)])

    x, y = rows(9), rows(9)
    recorded = loaded_again(torch.jit.trace(measured, (x, y)))
    torch.testing.assert_close(recorded(x + 1, y), measured(x + 1, y))


def normalized(x: Tensor) -> Tensor:
    return functional.l2_normalize(x)


@ignore_deprecation
@pytest.mark.parametrize(
    "what",
    [
        head(), mmcore.nn.L2Normalize(), mmcore.nn.ClipLoss(), mmcore.nn.SymileLoss(),
        nn.Sequential(nn.Linear(4, 16), head()), functional.clip_loss, normalized,
        metrics.linear_cka,
    ],
)  # fmt: skip
def test_script_is_refused_with_the_way_out(what: Any) -> None:
    """Catches torch's own error, about one of our arguments."""
    with pytest.raises(NotImplementedError, match=WAY_OUT):
        torch.jit.script(what)


# torch.fx


def test_a_symbolic_trace_records_our_functions() -> None:
    """Catches a trace that looks inside of a head, or of a function called by its whole name."""
    model = Model()
    traced = torch.fx.symbolic_trace(model)
    x, y = rows(), rows()
    assert torch.equal(traced(x, y), model(x, y))
    targets = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    names = ("project", "l2_normalize", "clip_loss", "multimodal_loss")
    assert {getattr(functional, name) for name in names} | {metrics.modality_gap} <= targets


def test_a_symbolic_trace_of_a_loss_names_the_way_out() -> None:
    """Catches "x must be a tensor, got Proxy"; and a way out that does not work."""

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = mmcore.nn.ClipLoss()

        def forward(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
            return self.loss(x, y, scale)

    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return module.__module__.startswith("mmcore.") or super().is_leaf_module(module, name)

    module, tensors = WithLoss(), (rows(), rows(), torch.tensor(5.0))
    with pytest.raises(TypeError, match=f"Proxy.*leaf of the tracer.*{WAY_OUT}"):
        torch.fx.symbolic_trace(module)
    traced = torch.fx.GraphModule(module, Leaves().trace(module))
    assert torch.equal(traced(*tensors), module(*tensors))


# DTensor


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A mesh of this process alone."""
    from torch.distributed.tensor import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_tensor_of_a_mesh_is_refused_with_the_way_out(mesh: Any) -> None:
    """Catches "does not have a sharding strategy registered", in whatever argument it comes."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    def spread(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, mesh, [Shard(0) if tensor.ndim else Replicate()])

    x, weight, scale, label = rows(), torch.randn(8, 16), torch.tensor(2.0), torch.arange(5)
    calls: dict[str, Callable[[], object]] = {
        "x": lambda: functional.l2_normalize(spread(x)),
        "weight": lambda: functional.project(x, spread(weight)),
        "scale": lambda: functional.clip_loss(x, x, spread(scale)),
        "label": lambda: functional.sup_con_loss(x, spread(label), 2.0),
        "first": lambda: functional.barlow_twins_loss(spread(x), x),
        "y": lambda: mmcore.metrics.modality_gap(x, spread(x)),
    }
    for name, call in calls.items():
        way_out = rf"{name} must be a plain tensor, got DTensor: pass {name}\.to_local\(\)"
        with pytest.raises(TypeError, match=rf"{way_out}.*{name}\.full_tensor\(\)"):
            call()
    found = functional.clip_loss(spread(x).to_local(), spread(x).full_tensor(), 2.0)
    assert torch.equal(found, functional.clip_loss(x, x.clone(), 2.0))
