from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Floats: TypeAlias = NDArray[np.float32]
_Doubles: TypeAlias = NDArray[np.float64]
_Indices: TypeAlias = NDArray[np.int64]

def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def select_instruction_set(name: str) -> bool: ...
def measure_fma_peak(threads: int) -> float: ...
def l2_normalize_forward(
    x: _Floats, eps: float, y: _Floats, inverse_norm: _Floats, threads: int
) -> None: ...
def l2_normalize_backward(
    y: _Floats, inverse_norm: _Floats, grad_y: _Floats, eps: float, grad_x: _Floats, threads: int
) -> None: ...
def project_forward(
    x: _Floats,
    norm: str,
    norm_weight: _Floats | None,
    norm_bias: _Floats | None,
    norm_eps: float,
    weight: _Floats,
    bias: _Floats | None,
    output_eps: float,
    output: _Floats,
    mean: _Floats | None,
    inverse_std: _Floats | None,
    inverse_norm: _Floats | None,
    threads: int,
) -> None: ...
def project_backward(
    x: _Floats,
    norm: str,
    norm_weight: _Floats | None,
    norm_bias: _Floats | None,
    norm_eps: float,
    weight: _Floats,
    output_eps: float,
    output: _Floats,
    mean: _Floats | None,
    inverse_std: _Floats | None,
    inverse_norm: _Floats | None,
    grad_output: _Floats,
    grad_x: _Floats,
    grad_weight: _Floats,
    grad_bias: _Floats | None,
    grad_norm_weight: _Floats | None,
    grad_norm_bias: _Floats | None,
    threads: int,
) -> None: ...
def softmax_similarity_forward(
    x: _Floats,
    y: _Floats,
    scale: float,
    bias: float,
    target: _Indices,
    row_lse: _Doubles,
    col_lse: _Doubles,
    row_pos: _Doubles,
    col_pos: _Doubles,
    threads: int,
) -> None: ...
def softmax_similarity_backward(
    x: _Floats,
    y: _Floats,
    scale: float,
    bias: float,
    target: _Indices,
    row_lse: _Doubles,
    col_lse: _Doubles,
    grad_row_lse: _Doubles,
    grad_col_lse: _Doubles,
    grad_row_pos: _Doubles,
    grad_col_pos: _Doubles,
    grad_x: _Floats,
    grad_y: _Floats,
    threads: int,
) -> tuple[float, float]: ...
