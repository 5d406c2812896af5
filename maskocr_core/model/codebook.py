"""k-means labels of steps: what masked prediction predicts. Features of a step, PCA, nearest centroid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Codebook:
    """features: what describes a step, P numbers; mean (P,), components (F, P) and centroids (K, F), all float32.

    portraits (K, H, window) float32 in [0, 1]: the mean ink around the steps of each label, for people to look at.
    """

    height: int
    features: nn.Module
    mean: Tensor
    components: Tensor
    centroids: Tensor
    portraits: Tensor | None = None

    def applied(self, function: Callable[[Tensor], Tensor]) -> Codebook:
        """This codebook with `function` applied to each tensor: how it moves to another device."""
        tensors = {name: getattr(self, name) for name in ("mean", "components", "centroids")}
        self.features._apply(function)
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})

    @torch.no_grad()
    def labels(self, ink: Tensor, valid_BL: Tensor) -> Tensor:
        """Nearest centroid (B, L) int64 of every step of un-masked, un-augmented ink (B, 1, H, W).

        Raises ValueError if the lines are not as high as those the codebook was made for.
        """
        if ink.shape[2] != self.height:
            raise ValueError(
                f"codebook was made for lines {self.height} px high, these are {ink.shape[2]} px: "
                f"run quantize again, or set data.height={self.height}"
            )
        # In bfloat16, which training on a GPU computes in, up to a step in fifteen would get another label than quantize counted.
        with torch.autocast(ink.device.type, enabled=False):
            reduced_BLF = (self.features(ink, valid_BL) - self.mean) @ self.components.T
            # argmin |f − c|² without the term that is the same for all centroids
            return (reduced_BLF @ self.centroids.T - self.centroids.square().sum(1) / 2).argmax(-1)


def fit(steps: np.ndarray, *, height: int, features: nn.Module, components: int, clusters: int, seed: int) -> Codebook:
    """PCA and mini-batch k-means (scikit-learn) of steps (N, P) float32; centroids that go empty are moved.

    Raises ValueError if there are fewer steps than clusters, or fewer features than components.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA

    if len(steps) < clusters:
        raise ValueError(
            f"{len(steps)} steps cannot make {clusters} clusters: accept more lines, or lower codebook.clusters"
        )
    if steps.shape[1] < components:
        raise ValueError(
            f"a step has {steps.shape[1]} features, fewer than codebook.components={components}: lower codebook.components"
        )
    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(steps)
    reduced = pca.transform(steps).astype(np.float32)
    kmeans = MiniBatchKMeans(
        clusters, batch_size=16384, n_init=1, max_iter=30, random_state=seed, reassignment_ratio=0.01
    ).fit(reduced)
    return Codebook(
        height,
        features,
        *(torch.tensor(array, dtype=torch.float32) for array in (pca.mean_, pca.components_, kmeans.cluster_centers_)),
    )


def perplexity(labels: np.ndarray, clusters: int) -> float:
    """exp of the entropy of label frequencies: how many clusters are in use, in effect; 1 … clusters."""
    share = np.bincount(labels, minlength=clusters) / max(1, len(labels))
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
