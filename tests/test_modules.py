"""Objectives as modules: the functions themselves, with their options fixed."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from objective_cases import WIDTH, Call, every_case, results, unit_rows

from mmcore import nn
from mmcore.bench.catalogue import CASES, ROWS, Case, Row

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def as_a_module_takes_them(case: Case, arguments: dict[str, Any]) -> tuple[list[Any], Any]:
    """In the order of the function, as far as it has one; the others by name."""
    in_order = []
    for name, parameter in parameters(case.row.function).items():
        if name not in arguments or parameter.kind is parameter.KEYWORD_ONLY:
            break
        in_order.append(name)
    by_name = {name: value for name, value in arguments.items() if name not in in_order}
    return [arguments[name] for name in in_order], by_name


@every_case()
def test_module_is_the_function_with_its_options(case: Case) -> None:
    """Catches a module that drops an argument or changes one."""
    call, options = Call.of(case), case.options(WIDTH)
    module = case.row.module(**options)
    inputs, by_name = as_a_module_takes_them(case, call.arguments)
    expected = call.function(*call.leaves.values())
    for each in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.manual_seed(1)
        torch.testing.assert_close(results(each(*inputs, **by_name)), expected, rtol=0, atol=0)
        assert not each.state_dict()
        assert repr(each) == f"{type(module).__name__}({module.extra_repr()})"
    for option, value in options.items():
        assert value is None or f"{option}={value!r}" in repr(module)


@every_row
def test_options_are_those_of_the_function_that_are_no_tensors(row: Row) -> None:
    """By name, so that editors and type checkers see them."""
    case, of_function, options = row.cases()[0], parameters(row.function), parameters(row.module)
    assert set(case.options(WIDTH)) <= set(options)
    assert not {"scale", "weight", "target", "x", *Call.of(case).arguments} & set(options)
    assert set(options) == {
        option for option, of in of_function.items() if "Tensor" not in str(of.annotation)
    }
    assert all(options[option].default == of_function[option].default for option in options)
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options.values())
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        row.module(temprature=0.1, **case.options(WIDTH))


@every_row
def test_every_option_reaches_the_function(row: Row) -> None:
    """Catches a module that forgets one of its options."""
    given = {option: object() for option in parameters(row.module)}
    assert row.module(**given).options == given


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("matryoshka_loss", "dims"),
        ("gram_loss", "anchor"),
        ("soft_cca_loss", "decorrelation_weight"),
    ],
)
def test_an_option_without_a_default_is_missed(name: str, option: str) -> None:
    with pytest.raises(TypeError, match=f"missing 1 required .*'{option}'"):
        ROWS[name].module()


@every_case([CASES["clip_loss, weights, rows"], CASES["siglip_loss, labels"]])
def test_open_clips_dictionary_with_options(case: Case) -> None:
    call = Call.of(case)
    inputs, by_name = as_a_module_takes_them(case, call.arguments)
    losses = case.row.module(**case.options(WIDTH))(*inputs, output_dict=True, **by_name)
    (expected,) = call.function(*call.leaves.values())
    assert list(losses) == ["contrastive_loss"]
    assert torch.equal(losses["contrastive_loss"], expected)


def test_compiles_to_one_graph() -> None:
    module = nn.InfoNceLoss(margin=0.2)
    query, key = unit_rows(12).requires_grad_(), unit_rows(20)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key, 10.0), module(query, key, 10.0))
