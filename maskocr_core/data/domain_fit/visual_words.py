"""Visual words: a small k-means of the features of labelled lines, and how often target and admitted lines use each.

Of the kinds of lines that fit, some are far oftener among the admitted lines than in the target: one large collection would
drown the rest. A line is drawn the less often, the more its word is over-represented (importance resampling on hashed
n-grams, Xie 2023, arXiv 2302.03169, with words of features instead). Bounded, so that nothing admitted is all but lost.
"""

from __future__ import annotations

import numpy as np

WORDS = 32
LINES_PER_WORD = 20  # of the target: fewer make a frequency that is noise
LEAST = 0.25  # of the weight is left to the most over-represented words
SMOOTHING = 0.01  # added to every frequency: a third of what each word has if all are used alike


def fit(whitened: np.ndarray, seed: int) -> np.ndarray:
    """Centres (K, F) float64 of the words of target lines (N, F); K is WORDS, fewer where the target is small."""
    from sklearn.cluster import KMeans

    count = max(1, min(WORDS, len(whitened) // LINES_PER_WORD))
    return KMeans(count, n_init=1, random_state=seed).fit(np.asarray(whitened, float)).cluster_centers_


def of(whitened: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N,) int: the nearest centre of each line."""
    # argmin |x − c|² without the term that is the same for all centres
    return (whitened @ centres.T - (centres**2).sum(axis=1) / 2).argmax(axis=1)


def ratios(target: np.ndarray, admitted: np.ndarray) -> np.ndarray:
    """(K,) weight in [LEAST, 1] of each word, from how often (K,) target and admitted lines use it.

    Their ratio as frequencies; words that the target has more of keep their full weight.
    """
    wanted, there = (counts / max(counts.sum(), 1e-9) + SMOOTHING for counts in (target, admitted))
    return np.clip(wanted / there, LEAST, 1.0)
