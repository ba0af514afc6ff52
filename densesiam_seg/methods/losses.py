"""The losses of DenseSiam as pure functions of tensors.

Axes: B images, K clusters, C channels, h w feature size, N and M places sampled in view 1 and 2. z is a projection,
p a prediction, both (B, K, h, w), or rows (B, N, K) of places.
The stop-gradient stands where a target is named and nowhere else. Equations: DenseSiam (ECCV 2022), section 3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Similarity = Literal["cross-entropy", "cosine"]
Balance = Literal["inverse", "frequency", "none"]


def pixel_weights(clusters: int, over_clusters: int) -> tuple[float, float]:
    """Weights of the K-way and the A-way pixel loss: log A and log K over their sum, so that both count alike."""
    log_k, log_a = math.log(max(clusters, 2)), math.log(max(over_clusters, 2))
    return log_a / (log_a + log_k), log_k / (log_a + log_k)


def dissimilarity(p: Tensor, z: Tensor, form: Similarity = "cross-entropy") -> Tensor:
    """D(p, z), the mean over pixels of -Σ_k softmax(target)_k · log softmax(p)_k, or of -cos(p, target)."""
    target = z.detach().float()
    if form == "cosine":
        return -F.cosine_similarity(p.float(), target, dim=1).mean()
    return -(target.softmax(1) * p.float().log_softmax(1)).sum(1).mean()


def pixel_loss(
    p_1: Tensor, z_1: Tensor, p_2: Tensor, z_2: Tensor, form: Similarity = "cross-entropy"
) -> Tensor:
    """PixSim: ½ D(p₁, z₂) + ½ D(p₂, z₁), for pixels in exact correspondence."""
    return 0.5 * dissimilarity(p_1, z_2, form) + 0.5 * dissimilarity(p_2, z_1, form)


def linked_loss(
    p_1: Tensor,
    z_1: Tensor,
    p_2: Tensor,
    z_2: Tensor,
    weight: Tensor,
    form: Similarity = "cross-entropy",
) -> Tensor:
    """PixSim of places linked by `weight` (B, N, M) ≥ 0: the mean of ½ D(p₁, z₂) + ½ D(p₂, z₁) over all links.

    Rows (B, N, K) of view 1 and (B, M, K) of view 2. Every image with a link counts alike; with the identity as weight
    it is `pixel_loss`. Without any link the loss is 0.
    """
    pairs = _similarities(p_1, z_2, form) + _similarities(p_2, z_1, form).mT
    links = weight.sum((-2, -1))
    means = (weight * pairs).sum((-2, -1)) / links.clamp(min=1e-12)
    return -0.5 * means.sum() / (links > 0).sum().clamp(min=1)


def _similarities(p: Tensor, z: Tensor, form: Similarity) -> Tensor:
    """-D of every prediction with every target: (B, N, K), (B, M, K) → (B, N, M)."""
    target = z.detach().float()
    # Autocast would round logarithms of shares to three digits.
    with torch.autocast(p.device.type, enabled=False):
        if form == "cosine":
            return F.normalize(p.float(), dim=-1) @ F.normalize(target, dim=-1).mT
        return p.float().log_softmax(-1) @ target.softmax(-1).mT


def prior_loss(z: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of z (B, K, h, w) with given shares of the clusters (B, K, h, w), mean over all pixels."""
    return -(shares * z.float().log_softmax(1)).sum(1).mean()


def segmentation_loss(z: Tensor, balance: Balance = "inverse") -> Tensor:
    """Cross-entropy of z with its own argmax, weighted as `pseudo_label_loss` says, mean over all B·h·w pixels."""
    log_shares = z.float().log_softmax(1)
    best, pseudo_labels = log_shares.max(1)
    return _balanced(best, pseudo_labels, z.shape[1], balance)


def pseudo_label_loss(z: Tensor, pseudo_labels: Tensor, balance: Balance = "inverse") -> Tensor:
    """Cross-entropy of z (B, K, h, w) with pseudo-labels (B, h, w), weighted per label, mean over all pixels.

    With n_k of n pixels labelled k the weight is n / (n_k · labels in use), which gives every label in use the same
    total weight (`inverse`: the re-balancing that the paper describes), n_k / n (`frequency`: what its released code
    computes, so that frequent labels weigh more) or 1 (`none`).
    """
    labelled = z.float().log_softmax(1).gather(1, pseudo_labels.unsqueeze(1)).squeeze(1)
    return _balanced(labelled, pseudo_labels, z.shape[1], balance)


def _balanced(log_share: Tensor, pseudo_labels: Tensor, clusters: int, balance: Balance) -> Tensor:
    if balance == "none":
        return -log_share.mean()
    counts = label_counts(pseudo_labels, clusters).float()
    shares = counts / counts.sum()
    weights = shares if balance == "frequency" else 1.0 / (shares * (counts > 0).sum())
    return -(weights[pseudo_labels] * log_share).mean()


def label_counts(labels: Tensor, clusters: int) -> Tensor:
    """Pixels of each label, (K,) int64."""
    if labels.device.type == "cpu":
        return torch.bincount(labels.flatten(), minlength=clusters)
    # A GPU's bincount asks for the largest label and makes the processor wait.
    ones = torch.ones_like(labels.flatten())
    return torch.zeros(clusters, dtype=torch.int64, device=labels.device).scatter_add_(
        0, labels.flatten(), ones
    )


def region_embeddings(z: Tensor, features: Tensor, used: Tensor | None = None) -> Tensor:
    """e[n] = Σ over pixels of softmax(z)[n] · F: (B, K, h, w) and (B, C, h, w) → (B, K, C).

    Where `used` (B, h, w) is given, pixels outside it do not count.
    """
    shares = z.float().softmax(1).flatten(2)
    if used is not None:
        shares = shares * used.flatten(1).unsqueeze(1)
    return shares @ features.float().flatten(2).mT


def region_loss(
    q_1: Tensor,
    u_1: Tensor,
    q_2: Tensor,
    u_2: Tensor,
    *,
    temperature: float = 0.1,
    stop_gradient: bool = True,
) -> Tensor:
    """RegionSim: region n of one view must find region n of the other among its image's K regions.

    Predictions q and projections u, each (B, K, C), one row per region; similarities are cosines over `temperature`.
    """
    return 0.5 * _find(q_1, u_2, temperature, stop_gradient) + 0.5 * _find(
        q_2, u_1, temperature, stop_gradient
    )


def _find(q: Tensor, u: Tensor, temperature: float, stop_gradient: bool) -> Tensor:
    target = u.detach() if stop_gradient else u
    scores = F.normalize(q.float(), dim=-1) @ F.normalize(target.float(), dim=-1).mT / temperature
    return -scores.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean()
