"""Every array is a DLPack capsule, or an object with the method __dlpack__, in CPU memory.

Capsules are borrowed: nobody may consume them while a call or an inputs object uses them. Vectors
are contiguous, matrices have unit column stride.
"""

from typing import TypeAlias

_Floats: TypeAlias = object  # float32
_Doubles: TypeAlias = object  # float64
_Indices: TypeAlias = object  # int64
_Ids: TypeAlias = object  # int32
_Bytes: TypeAlias = object  # uint8
_Rows: TypeAlias = object  # a matrix of float32, float16 or bfloat16

def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def select_instruction_set(name: str) -> bool: ...
def obstacle_to_matrix_unit() -> str: ...
def has_bfloat16_products() -> bool: ...
def has_matrix_unit() -> bool: ...
def measure_peak(in_bfloat16: bool, threads: int) -> float: ...
def l2_normalize_forward(
    x: _Rows, eps: float, y: _Rows, inverse_norm: _Floats, threads: int
) -> None: ...
def l2_normalize_backward(
    y: _Rows, inverse_norm: _Floats, grad_y: _Rows, eps: float, grad_x: _Rows, threads: int
) -> None: ...

class ProjectionInputs:
    def __init__(
        self,
        x: _Rows,
        weight: _Rows,
        bias: _Floats | None,
        norm: str,
        norm_weight: _Floats | None,
        norm_bias: _Floats | None,
        norm_eps: float,
        normalize: bool,
        eps: float,
        precision: str,
    ) -> None: ...

def project_forward(
    inputs: ProjectionInputs,
    output: _Rows,
    mean: _Floats,
    inverse_std: _Floats,
    inverse_norm: _Floats,
    threads: int,
) -> None: ...
def project_backward(
    inputs: ProjectionInputs,
    output: _Rows,
    mean: _Floats,
    inverse_std: _Floats,
    inverse_norm: _Floats,
    grad_output: _Rows,
    grad_x: _Rows | None,
    grad_weight: _Floats | None,
    grad_bias: _Floats | None,
    grad_norm_weight: _Floats | None,
    grad_norm_bias: _Floats | None,
    threads: int,
) -> None: ...

class SimilarityInputs:
    def __init__(
        self,
        x: _Rows,
        y: _Rows | None,
        scale: float,
        bias: float,
        row_bias: _Doubles | None,
        col_bias: _Doubles | None,
        target: _Indices | None,
        row_label: _Ids | None,
        col_label: _Ids | None,
        row_group: _Ids | None,
        col_group: _Ids | None,
        denominator: str,
        has_columns: bool,
        precision: str,
        positives: str,
    ) -> None: ...

def softmax_similarity_forward(
    inputs: SimilarityInputs,
    row_lse: _Doubles,
    col_lse: _Doubles,
    row_pos: _Doubles,
    col_pos: _Doubles,
    kept: _Floats,
    threads: int,
) -> None: ...
def softmax_similarity_backward(
    inputs: SimilarityInputs,
    row_lse: _Doubles,
    col_lse: _Doubles,
    row_pos: _Doubles,
    col_pos: _Doubles,
    grad_row_lse: _Doubles,
    grad_col_lse: _Doubles,
    grad_row_pos: _Doubles,
    grad_col_pos: _Doubles,
    kept: _Floats,
    grad_x: _Floats | None,
    grad_y: _Floats | None,
    grad_row_bias: _Doubles | None,
    grad_col_bias: _Doubles | None,
    threads: int,
) -> float: ...
def sigmoid_similarity_forward(inputs: SimilarityInputs, threads: int) -> tuple[float, float]: ...
def sigmoid_similarity_gradients(
    inputs: SimilarityInputs,
    grad_total: float,
    grad_positive: float,
    grad_x: _Floats | None,
    grad_y: _Floats | None,
    needs_bias: bool,
    threads: int,
) -> tuple[float, float, float, float]: ...
def prefix_similarity_forward(
    inputs: SimilarityInputs,
    ends: list[int],
    eps: float,
    row_lse: _Doubles,
    col_lse: _Doubles,
    row_pos: _Doubles,
    kept: _Floats,
    threads: int,
) -> list[int]: ...
def prefix_similarity_backward(
    inputs: SimilarityInputs,
    ends: list[int],
    eps: float,
    row_lse: _Doubles,
    col_lse: _Doubles,
    row_pos: _Doubles,
    grad_row_lse: _Doubles,
    grad_col_lse: _Doubles,
    grad_row_pos: _Doubles,
    kept: _Floats,
    grad_x: _Floats | None,
    grad_y: _Floats | None,
    threads: int,
) -> float: ...
def distillation_forward(
    student: SimilarityInputs, teacher: SimilarityInputs, statistics: list[_Doubles], threads: int
) -> bool: ...
def distillation_backward(
    student: SimilarityInputs,
    teacher: SimilarityInputs,
    statistics: list[_Doubles],
    upstream: list[_Doubles],
    grad_x: _Floats | None,
    grad_y: _Floats | None,
    threads: int,
) -> float: ...
def hardest_negatives(
    inputs: SimilarityInputs, row_index: _Indices, col_index: _Indices, threads: int
) -> None: ...
def topk(
    queries: _Rows,
    gallery: _Rows,
    k: int,
    metric: str,
    offset: int,
    bias: _Doubles | None,
    query_group: _Indices | None,
    gallery_group: _Indices | None,
    excluded: _Indices | None,
    first_pass: str,
    prepared: _Bytes | None,
    best_scores: _Doubles | None,
    best_indices: _Indices | None,
    scores: _Doubles,
    indices: _Indices,
    threads: int,
) -> None: ...
def prepared_size(gallery: _Rows) -> int: ...
def prepare_gallery(gallery: _Rows, metric: str, prepared: _Bytes, threads: int) -> None: ...
