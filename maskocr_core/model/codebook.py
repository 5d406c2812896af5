"""k-means labels of steps: what masked prediction predicts. Label-free: pixel windows, PCA, nearest centroid.

The paper clusters activations of an already trained recogniser; who has none needs targets from the data alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maskocr_core.config import STEP


@dataclass(frozen=True)
class Codebook:
    """mean (P,), components (F, P) and centroids (K, F), all float32; P = height × window pixels."""

    height: int
    window: int
    mean: Tensor
    components: Tensor
    centroids: Tensor

    def labels(self, ink: Tensor) -> Tensor:
        """Nearest centroid (B, L) int64 of every step of un-masked, un-augmented ink (B, 1, H, W).

        Raises ValueError if the lines are not as high as those the codebook was made for.
        """
        if ink.shape[2] != self.height:
            raise ValueError(
                f"codebook was made for lines {self.height} px high, these are {ink.shape[2]} px: "
                f"run quantize again, or set data.height={self.height}"
            )
        features = (windows(ink, self.window) - self.mean) @ self.components.T  # (B, L, F)
        # argmin |f − c|² without the term that is the same for all centroids
        return (features @ self.centroids.T - self.centroids.square().sum(1) / 2).argmax(-1)


def windows(ink: Tensor, window: int) -> Tensor:
    """The pixels around each step: (B, 1, H, W) to (B, L, H × window), white beyond the line's ends."""
    side = (window - STEP) // 2
    padded = functional.pad(ink[:, 0], (side, side))
    return padded.unfold(2, window, STEP).transpose(1, 2).flatten(2)


def fit(pixels: np.ndarray, *, height: int, window: int, components: int, clusters: int, seed: int) -> Codebook:
    """PCA and mini-batch k-means (scikit-learn) of windows (N, height × window) float32.

    Raises ValueError if there are fewer windows than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA

    if len(pixels) < clusters:
        raise ValueError(
            f"{len(pixels)} steps cannot make {clusters} clusters: accept more lines, or lower codebook.clusters"
        )
    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(pixels)
    features = pca.transform(pixels).astype(np.float32)
    kmeans = MiniBatchKMeans(
        clusters, batch_size=16384, n_init=1, max_iter=30, random_state=seed, reassignment_ratio=0.01
    ).fit(features)
    return Codebook(
        height,
        window,
        *(torch.tensor(array, dtype=torch.float32) for array in (pca.mean_, pca.components_, kmeans.cluster_centers_)),
    )


def perplexity(labels: np.ndarray, clusters: int) -> float:
    """exp of the entropy of label frequencies: how many clusters are in use, in effect; 1 … clusters."""
    share = np.bincount(labels, minlength=clusters) / max(1, len(labels))
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
