"""How far two clusterings agree: their best pairing and their normalised mutual information.

Axes: K L clusters of the one and of the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def best_pairs(gains: NDArray[Any]) -> NDArray[np.int64]:
    """The column (K,) that each row of gains (K, L), K ≤ L, is paired with where their sum is largest."""
    # scipy's import takes a quarter of a second.
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(gains, maximize=True)[1], np.int64)


def normalised_mutual_information(joint: NDArray[np.int64]) -> float:
    """Normalised mutual information of two clusterings of the same places, 0 to 1, from their joint histogram (K, K).

    I(X; Y) / √(H(X) H(Y)), Strehl and Ghosh, "Cluster ensembles" (2002); where either has no entropy it is 0.
    """
    shares = joint / joint.sum()
    own, other = entropy(shares.sum(1)), entropy(shares.sum(0))
    if own <= 0 or other <= 0:
        return 0.0
    # Rounding may exceed the bounds.
    return float(np.clip((own + other - entropy(shares)) / (own * other) ** 0.5, 0, 1))


def entropy(shares: NDArray[np.float64]) -> float:
    """Of shares that add up to 1, in nats."""
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())
