"""The losses of DenseSiam as functions of tensors. Equations: DenseSiam (ECCV 2022), section 3.

Axes: B images, K clusters, C channels, h w feature size, N places sampled in each view. z is a projection, p a
prediction, both (2B, K, h, w), or rows (2B, N, K) of places: those of both views, view 1 first.
The stop-gradient is applied where `target` is assigned and nowhere else.

Where a `group` of processes shares a batch, each has the images of its part, and the mean of their losses, by their
numbers of images, is the loss of the batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.network.model import DenseSiam
from densesiam_seg.peers.group import ALONE, Group

Similarity = Literal["cross-entropy", "cosine"]
Balance = Literal["inverse", "frequency", "none"]

REGION_TEMPERATURE = 0.1
"""Divides the cosine similarities of the region loss before its softmax."""


def pixel_weights(clusters: int, over_clusters: int) -> tuple[float, float]:
    """Weights of the K-way and the A-way pixel loss: log A and log K over their sum, which balances the two."""
    log_k, log_a = math.log(max(clusters, 2)), math.log(max(over_clusters, 2))
    return log_a / (log_a + log_k), log_k / (log_a + log_k)


def dissimilarity(p: Tensor, z: Tensor, form: Similarity = "cross-entropy") -> Tensor:
    """D(p, z), the mean over pixels of -Σ_k softmax(target)_k · log softmax(p)_k, or of -cos(p, target)."""
    target = z.detach().float()
    if form == "cosine":
        return -F.cosine_similarity(p.float(), target, dim=1).mean()
    return -(target.softmax(1) * p.float().log_softmax(1)).sum(1).mean()


def pixel_loss(p: Tensor, z: Tensor, form: Similarity = "cross-entropy") -> Tensor:
    """PixSim: ½ D(p₁, z₂) + ½ D(p₂, z₁), for pixels in exact correspondence."""
    (p_1, p_2), (z_1, z_2) = p.chunk(2), z.chunk(2)
    return 0.5 * dissimilarity(p_1, z_2, form) + 0.5 * dissimilarity(p_2, z_1, form)


def linked_loss(
    p: Tensor,
    z: Tensor,
    weight: Tensor,
    form: Similarity = "cross-entropy",
    linked: Tensor | None = None,
) -> Tensor:
    """PixSim of places linked by `weight` (B, N, N) ≥ 0: the mean of ½ D(p₁, z₂) + ½ D(p₂, z₁) over all links.

    Images with a link have equal weight; with the identity as weight it is `pixel_loss`. Without any link it is 0.
    `linked`: by how many images the sum is divided, where that is not the number of those that are linked.
    """
    (p_1, p_2), (z_1, z_2) = p.chunk(2), z.chunk(2)
    pairs = _similarities(p_1, z_2, form) + _similarities(p_2, z_1, form).mT
    links = weight.sum((-2, -1))
    means = (weight * pairs).sum((-2, -1)) / links.clamp(min=1e-12)
    count = (links > 0).sum() if linked is None else linked
    return -0.5 * means.sum() / count.clamp(min=1e-12)


def _similarities(p: Tensor, z: Tensor, form: Similarity) -> Tensor:
    """-D of every prediction (B, N, K) with every target: (B, N, N)."""
    target = z.detach().float()
    # Autocast would round log-probabilities to three digits.
    with torch.autocast(p.device.type, enabled=False):
        if form == "cosine":
            return F.normalize(p.float(), dim=-1) @ F.normalize(target, dim=-1).mT
        return p.float().log_softmax(-1) @ target.softmax(-1).mT


def image_loss(
    network: DenseSiam, features: Tensor, group: Group = ALONE
) -> tuple[Tensor, Tensor, Tensor]:
    """SimSiam's loss of the pooled features of both views (2B, C, h, w), how far the views agree, and their spread.

    The loss is ½ D(p₁, z₂) + ½ D(p₂, z₁) in its cosine form; they agree in the share of images whose other view is the
    most similar one of these.
    """
    assert network.image_projector is not None and network.image_predictor is not None
    z = network.image_projector(features.float().mean((-2, -1)))
    p = network.image_predictor(z)
    loss = pixel_loss(p, z, "cosine")
    # Autocast would round similarities to three digits, and the first of equal ones would win.
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        z_1, z_2 = F.normalize(z.float(), dim=1).chunk(2)
        own = torch.arange(len(z_1), device=z.device)
        agreement = ((z_1 @ z_2.T).argmax(1) == own).float().mean()
    return loss, agreement, spread(p, group)


@torch.no_grad()
def spread(z: Tensor, group: Group = ALONE) -> Tensor:
    """Deviation of L2-normalised rows (N, D) times √D, mean over D: 1 for even directions, 0 for a single one."""
    rows = F.normalize(z.float(), dim=1)
    if group.alone:
        deviation = rows.std(0, unbiased=False)
    else:
        exact = rows.double()
        mean, square = group.mean(torch.stack((exact.mean(0), exact.square().mean(0))), len(z))
        deviation = (square - mean.square()).clamp(min=0).sqrt().float()
    return deviation.mean() * math.sqrt(z.shape[1])


def prior_loss(z: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of z with given cluster probabilities (2B, K, h, w), mean over all pixels."""
    return -(shares * z.float().log_softmax(1)).sum(1).mean()


def pseudo_label_loss(
    z: Tensor,
    pseudo_labels: Tensor | None = None,
    balance: Balance = "inverse",
    group: Group = ALONE,
) -> Tensor:
    """Cross-entropy of z (B, K, h, w) with pseudo-labels (B, h, w), by default its own argmax, mean over all pixels.

    With n_k of n pixels labelled k a pixel's weight is n / (n_k · labels in use), which gives every label in use the
    same total weight (`inverse`: the re-balancing that the paper describes), n_k / n (`frequency`: what its released
    code computes, so that frequent labels weigh more) or 1 (`none`).
    """
    log_shares = z.float().log_softmax(1)
    labels = log_shares.argmax(1) if pseudo_labels is None else pseudo_labels
    log_share = log_shares.gather(1, labels.unsqueeze(1)).squeeze(1)
    if balance == "none":
        return -log_share.mean()
    weights = label_weights(group.total(label_counts(labels, z.shape[1])), balance)
    return -(weights[labels] * log_share).mean()


def label_weights(counts: Tensor, balance: Balance) -> Tensor:
    """Weight of a pixel of each label, by how many pixels have it (..., K); `pseudo_label_loss` has the formulas."""
    counts = counts.float()
    if balance == "none":
        return torch.ones_like(counts)
    shares = counts / counts.sum(-1, keepdim=True)
    if balance == "frequency":
        return shares
    in_use = (counts > 0).sum(-1, keepdim=True)
    # No pixel has a label that is not in use; its weight must only be finite.
    return 1.0 / (shares * in_use).clamp(min=1e-12)


def label_counts(labels: Tensor, clusters: int) -> Tensor:
    """Pixels of each label, (K,) int64."""
    labels = labels.flatten()
    if labels.device.type == "cpu":
        return torch.bincount(labels, minlength=clusters)
    # A GPU's bincount asks for the largest label and makes the processor wait.
    counts = torch.zeros(clusters, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(0, labels, torch.ones_like(labels))


def region_embeddings(z: Tensor, features: Tensor, used: Tensor | None = None) -> Tensor:
    """e[n] = Σ over pixels of softmax(z)[n] · F: (B, K, h, w) and (B, C, h, w) → (B, K, C).

    Where `used` (B, h, w) is given, pixels outside it do not count.
    """
    shares = z.float().softmax(1).flatten(2)
    if used is not None:
        shares = shares * used.flatten(1).unsqueeze(1)
    return shares @ features.float().flatten(2).mT


def region_loss(network: DenseSiam, embeddings: Tensor, stop_gradient: bool = True) -> Tensor:
    """RegionSim of embeddings (2B, K, C): contrastive, region n of one view against the K of the other.

    With predictions q and projections u it is the mean of both directions, on cosines over REGION_TEMPERATURE.
    """
    u, q = network.region_outputs(embeddings)
    (u_1, u_2), (q_1, q_2) = u.chunk(2), q.chunk(2)
    return 0.5 * _contrast(q_1, u_2, stop_gradient) + 0.5 * _contrast(q_2, u_1, stop_gradient)


def _contrast(q: Tensor, u: Tensor, stop_gradient: bool) -> Tensor:
    target = u.detach() if stop_gradient else u
    cosines = F.normalize(q.float(), dim=-1) @ F.normalize(target.float(), dim=-1).mT
    own = (cosines / REGION_TEMPERATURE).log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    # Of no image at all the mean would be no number.
    return -own.mean() if own.numel() else -own.sum()
