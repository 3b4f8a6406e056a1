"""Classes by a linear probe beside scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peer_cases import needs

from mmcore.analysis import linear_probe


def classes_of(count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Classes that overlap, in columns of several scales."""
    labels = torch.randint(count, (600,))
    centres = torch.randn(count, 20, dtype=torch.float64) / 2
    x = centres[labels] + torch.randn(600, 20).double()
    return (x * torch.logspace(-1, 1, 20)).numpy(), labels.numpy()


@needs("sklearn")
@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("l2", [0.1, 1.0, 100.0])
def test_linear_probe(count: int, l2: float) -> None:
    """Catches another convention of the penalty: probabilities are equal to 1e-6 in float64, to
    1e-3 in float32.
    """
    from sklearn.linear_model import LogisticRegression

    x, labels = classes_of(count)
    theirs = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-12).fit(x, labels)
    expected = theirs.predict_proba(x)
    probe = linear_probe(x, labels, l2=l2)
    np.testing.assert_allclose(probe.probabilities(x), expected, rtol=0, atol=1e-6)
    assert probe.accuracy(x, labels) == theirs.score(x, labels)
    narrow = x.astype(np.float32)
    found = linear_probe(narrow, labels, l2=l2).probabilities(narrow)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
