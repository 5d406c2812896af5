"""How alike two sets of lines are as wholes: KID, and how it depends on how many documents each of them is from."""

from __future__ import annotations

import math

import numpy as np

SUBSETS = 20
CONFIDENCE = 0.95  # of the interval in which further documents would lie


def effective(names: np.ndarray) -> float:
    """How many equally long documents differ as much as these: the inverse of the sum of squared shares."""
    _, counts = np.unique(names, return_counts=True)
    return float(counts.sum() ** 2 / (counts.astype(float) ** 2).sum())


def kid(a: np.ndarray, b: np.ndarray, size: int, random: np.random.Generator) -> float:
    """Unbiased MMD² with the kernel (x·y/F + 1)³ (Bińkowski 2018), mean over SUBSETS subsets of `size` lines of each."""

    def once() -> float:
        x, y = (lines[random.choice(len(lines), size, replace=False)].astype(float) for lines in (a, b))
        xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
        return ((xx.sum() - np.trace(xx)) + (yy.sum() - np.trace(yy))) / (size * (size - 1)) - 2 * xy.mean()

    return float(np.mean([once() for _ in range(SUBSETS)]))


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) kernel of KID between lines (N, F) and (M, F)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def spread(documents: float, others: float) -> float:
    """KID between means of so many and so many documents, per variance between single documents."""
    return 1 / documents + 1 / others


def prediction_limit(mean: float, deviation: float, groups: int, one_over: float = 1.0) -> float:
    """Upper end of the interval in which the mean of 1 / one_over further groups lies, `groups` being known (Student's t)."""
    from scipy import stats

    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, groups - 1))
    return max(mean + t * deviation * math.sqrt(one_over + 1 / groups), 1e-6)
