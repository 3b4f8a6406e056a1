"""Objectives as modules: the functions themselves, with their options fixed."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional, nn

ROWS, WIDTH = 12, 8


def unit_rows(count: int = ROWS) -> Tensor:
    return F.normalize(torch.randn(count, WIDTH), dim=1)


def wide_rows(count: int = 5 * ROWS) -> Tensor:
    return torch.randn(count, WIDTH)


def by_name() -> dict[str, Tensor]:
    return {name: unit_rows() for name in ("image", "text", "audio")}


LABEL = torch.arange(ROWS) // 3
NO_OPTIONS: dict[str, Any] = {}
# Options, inputs, and inputs that are given by name.
CASES: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "alignment_loss": ({"power": 1.0}, lambda: [unit_rows(), unit_rows()], {}),
    "barlow_twins_loss": ({"eps": 1e-3}, lambda: [wide_rows(), wide_rows()], {}),
    "cca_loss": ({"components": 3}, lambda: [wide_rows(), wide_rows()], {}),
    "cka_loss": (NO_OPTIONS, lambda: [wide_rows(), wide_rows()], {}),
    "clip_loss": (
        {"direction": "rows"},
        lambda: [unit_rows(), unit_rows(), 14.0],
        {"group": LABEL},
    ),
    "coca_loss": (
        {"caption_weight": 0.5},
        lambda: [unit_rows(), unit_rows(), 14.0, unit_rows(), wide_rows(), LABEL],
        {},
    ),
    "coral_loss": (NO_OPTIONS, lambda: [wide_rows(), wide_rows(30)], {}),
    "cyclip_loss": ({"in_modal_weight": 0.5}, lambda: [unit_rows(), unit_rows()], {}),
    "dcl_loss": ({"sigma": 0.5}, lambda: [unit_rows(), unit_rows(), 10.0], {}),
    "distill_clip_loss": (
        {"backend": "reference"},
        lambda: [unit_rows(), unit_rows(), 10.0, unit_rows(), unit_rows(), 20.0],
        {},
    ),
    "gram_loss": ({"anchor": "text"}, lambda: [by_name(), 10.0], {}),
    "hard_negative_loss": ({"hardness": 0.3}, lambda: [unit_rows(), unit_rows(), 10.0], {}),
    "info_nce_loss": (
        {"margin": 0.2},
        lambda: [unit_rows(), unit_rows(20), 10.0],
        {"target": LABEL, "queue": unit_rows(5), "log_q": torch.zeros(25)},
    ),
    "linear_cross_entropy_loss": (
        {"ignore_index": 2, "label_smoothing": 0.1},
        lambda: [unit_rows(), wide_rows(), LABEL],
        {"bias": torch.ones(5 * ROWS)},
    ),
    "matryoshka_loss": (
        {"dims": (2, 8), "weights": (1.0, 0.5)},
        lambda: [unit_rows(), unit_rows(), 10.0],
        {"group": LABEL},
    ),
    "mil_nce_loss": (NO_OPTIONS, lambda: [unit_rows(), unit_rows(), LABEL, LABEL, 10.0], {}),
    "mmd_loss": ({"bandwidths": (1.0,)}, lambda: [unit_rows(), unit_rows(20)], {}),
    "multimodal_loss": (
        {"pairs": "text", "objective": "siglip"},
        lambda: [by_name(), 10.0, -10.0],
        {"ids": dict.fromkeys(("image", "text", "audio"), torch.arange(ROWS))},
    ),
    "multiple_negatives_ranking_loss": (
        {"hardness": "all_negatives", "hardness_strength": 2.0},
        lambda: [unit_rows(), [unit_rows(), unit_rows()], 10.0],
        {},
    ),
    "nt_xent_loss": (NO_OPTIONS, lambda: [unit_rows(), unit_rows(), 10.0], {}),
    "siglip_loss": (
        {"backend": "reference"},
        lambda: [unit_rows(), unit_rows(), 10.0, -10.0],
        {"row_label": LABEL, "col_label": LABEL},
    ),
    "soft_cca_loss": ({"decorrelation_weight": 0.3}, lambda: [wide_rows(), wide_rows()], {}),
    "sup_con_loss": (NO_OPTIONS, lambda: [unit_rows(), LABEL, 10.0], {}),
    "symile_loss": (NO_OPTIONS, lambda: [by_name(), 10.0], {}),
    "unicl_loss": (NO_OPTIONS, lambda: [unit_rows(), unit_rows(), LABEL, LABEL, 10.0], {}),
    "uniformity_loss": ({"temperature": 3.0}, lambda: [unit_rows()], {}),
    "vse_loss": ({"margin": 0.4}, lambda: [unit_rows(), unit_rows()], {"group": LABEL}),
    "vicreg_loss": ({"variance_weight": 9.0}, lambda: [wide_rows(), wide_rows()], {}),
}


def tuple_of(losses: Any) -> Any:
    """open_clip's modules return a plain tuple where a function has a named one."""
    return losses if isinstance(losses, Tensor) else tuple(losses)


MODULES = {name.lower(): getattr(nn, name) for name in nn.__all__}


def module_of(name: str) -> Any:
    return MODULES[name.replace("_", "")]


def test_every_objective_has_a_module() -> None:
    losses = {name for name in functional.__all__ if name.endswith("_loss")}
    assert losses == set(CASES)
    assert {name.replace("_", "") for name in losses} == {
        name for name in MODULES if name.endswith("loss")
    }


@pytest.mark.parametrize("name", CASES)
def test_module_is_the_function_with_its_options(name: str) -> None:
    options, make_inputs, named = CASES[name]
    module = module_of(name)(**options)
    inputs = make_inputs()
    expected = getattr(functional, name)(*inputs, **named, **options)
    for each in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(each(*inputs, **named), tuple_of(expected), rtol=0, atol=0)
        assert not each.state_dict()
        assert repr(each) == f"{type(module).__name__}({module.extra_repr()})"
    for option, value in options.items():
        assert f"{option}={value!r}" in repr(module)


@pytest.mark.parametrize("name", CASES)
def test_options_are_those_of_the_function_that_are_no_tensors(name: str) -> None:
    """By name, so that editors and type checkers see them."""
    module = module_of(name)
    of_function = inspect.signature(getattr(functional, name)).parameters
    options = inspect.signature(module).parameters
    assert set(CASES[name][0]) <= set(options)
    assert not {"scale", "weight", "target", "x", *CASES[name][2]} & set(options)
    assert set(options) == {
        option for option, of in of_function.items() if "Tensor" not in str(of.annotation)
    }
    assert all(options[option].default == of_function[option].default for option in options)
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options.values())
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        module(temprature=0.1, **CASES[name][0])


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
        module_of(name)()


@pytest.mark.parametrize("name", ["clip_loss", "siglip_loss"])
def test_open_clips_dictionary_with_options(name: str) -> None:
    options, make_inputs, named = CASES[name]
    inputs = make_inputs()
    losses = module_of(name)(**options)(*inputs, output_dict=True, **named)
    expected = getattr(functional, name)(*inputs, **named, **options)
    assert list(losses) == ["contrastive_loss"]
    assert torch.equal(losses["contrastive_loss"], expected)


def test_compiles_to_one_graph() -> None:
    module = nn.InfoNceLoss(margin=0.2)
    query, key = unit_rows().requires_grad_(), unit_rows(20)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key, 10.0), module(query, key, 10.0))
