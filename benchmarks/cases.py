"""What is measured: shapes, fresh inputs, and the arithmetic and traffic counted explicitly.

A count belongs to the case, never to the provider: everybody gets the same numerator, so ratios of
GFLOP/s are ratios of time, and a provider that does superfluous work cannot look busy.
"""

import usual
from row_cases import L2NormalizeCase, ProjectCase
from similarity_cases import ClipCase, NTXentCase, SiglipCase, SupConCase

Case = ClipCase | SiglipCase | NTXentCase | SupConCase | ProjectCase | L2NormalizeCase
CASE_TYPES: dict[str, type[Case]] = {
    "clip": ClipCase,
    "siglip": SiglipCase,
    "nt_xent": NTXentCase,
    "sup_con": SupConCase,
    "project": ProjectCase,
    "l2_normalize": L2NormalizeCase,
}


def make_case(
    op: str,
    *,
    rows: int,
    width: int,
    input_width: int,
    dtype: str,
    scale: float | None,
    pair_cosine: float,
) -> Case:
    """The case of one operation; what the operation does not use is left out.

    Without a scale it is the operation's usual one.
    """
    if op == "project":
        return ProjectCase(rows, input_width, width, dtype)
    if op == "l2_normalize":
        return L2NormalizeCase(rows, width, dtype)
    scale = usual.SCALES[op] if scale is None else scale
    return CASE_TYPES[op](rows, width, dtype, scale, pair_cosine)
