"""An entropy estimator for a learned R(x) that heavy tails cannot fool: the best scale mixture of Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_filter.objectives.samples import LOG_2PI, check, check_condition, rank_by

__all__ = ["scale_mixture"]

# log c_k: 0 is the Gaussian of the same covariance. Below it the core of a heavy-tailed distribution, above it the tails.
LOG_SCALES = tuple(0.5 * k for k in range(-14, 9))


def scale_mixture(samples: Tensor, condition: Tensor | None = None, nodes: int = 12, steps: int = 12) -> Tensor:
    """Entropy given a noise level s, bounded by the best scale mixture of Gaussians with a local mean and covariance.

        H[z | s] <= min_{pi, Sigma} - < log sum_k pi_k N(z; mu(s), c_k^2 Sigma(s)) >

    Equal to the log-determinant where z is Gaussian given s (or has lighter tails), and to the entropy itself where z is any scale mixture.

    Why heavy tails cannot fool it: scales are free, so a share p of the samples that is sent outward by a factor g is met by a component
    of its own, and the bound grows by p D log g, as the true entropy does, and by at most the -p log p - (1 - p) log (1 - p) nats that tell two
    groups apart. The log-determinant grows by up to D log g, whatever p. This holds whether the level knows of these samples or not.

    mu and Sigma are linear in the level's rank between ``nodes``, where they come from kernel-weighted moments: the covariance first, then
    re-weighted by EM (w_i = sum_k p(k | z_i) / c_k^2), which also finds pi.

    Args:
        samples: ``(N, D)``.
        condition: ``(N,)`` or ``(N, C)``, the level (usually log R); detached, several columns are averaged. ``None``: unconditional.
        nodes: number of them; fewer are used where one would hold under ``4 (D + 1)`` samples.
        steps: of EM, from a robust start. The bound holds after any number, and the gradient is that of the bound with the found weights and
            shares held fixed, which at the minimum is the whole of it.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: fewer samples than dimensions, a condition of another length, no node, or a number that is not finite.
    """
    if nodes < 1:
        raise ValueError(f"nodes is {nodes}, expected at least 1")
    check(samples, samples.shape[-1] + 1)
    count, dim = samples.shape
    nodes = max(1, min(nodes, count // (4 * (dim + 1))))
    hats = samples.new_ones(count, 1, dtype=torch.float64)
    if condition is not None:
        check_condition(condition, samples)
        hats = _hats(condition.detach().reshape(count, -1).mean(-1), nodes)
    z = samples.double()
    log_scale = torch.tensor(LOG_SCALES, dtype=torch.float64, device=samples.device)
    with torch.no_grad():  # at the minimum over weights and shares the gradient through them is 0
        weight, log_share = _robust_start(z), torch.full_like(log_scale, -math.log(len(LOG_SCALES)))
        for _ in range(steps):
            joint = _joint(z, weight, hats, log_share, log_scale)[0]
            posterior = joint.softmax(-1)
            log_share = posterior.mean(0).clamp_min(1e-12).log().log_softmax(-1)
            weight = posterior @ (-2.0 * log_scale).exp()[:, None]
    joint, log_volume = _joint(z, weight, hats, log_share, log_scale)
    return (0.5 * dim * LOG_2PI + (log_volume - torch.logsumexp(joint, dim=-1)).mean()).to(samples.dtype)


def _hats(level: Tensor, nodes: int) -> Tensor:
    """Linear interpolation weights ``(N, G)`` of every sample's rank between evenly spread nodes: rows sum to 1."""
    if nodes == 1:
        return level.new_ones(len(level), 1, dtype=torch.float64)
    rank = torch.empty(len(level), dtype=torch.float64, device=level.device)
    rank[rank_by(level)] = torch.linspace(0.0, nodes - 1.0, len(level), dtype=torch.float64, device=level.device)
    return (1.0 - (rank[:, None] - torch.arange(nodes, device=level.device)).abs()).clamp_min(0.0)


def _joint(z: Tensor, weight: Tensor, hats: Tensor, log_share: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """log pi_k N(z; mu(s), c_k^2 Sigma(s)) ``(N, K)`` but for its log-volume 1/2 log det Sigma(s) + const ``(N,)``."""
    dim = z.shape[1]
    kernel = hats * weight
    mean = (kernel.mT @ z) / kernel.sum(0)[:, None]
    centred = z - hats @ mean
    products = (centred.unsqueeze(-1) * centred.unsqueeze(-2)).flatten(1)
    scatter = (kernel.mT @ products / hats.sum(0)[:, None]).unflatten(1, (dim, dim))
    ridge = 1e-10 * scatter.detach().diagonal(dim1=-2, dim2=-1) + 1e-30
    factor = torch.linalg.cholesky_ex(scatter + torch.diag_embed(ridge)).L
    back = torch.linalg.solve_triangular(factor, torch.eye(dim, dtype=z.dtype, device=z.device), upper=False)
    # Sigma(s)^-1/2 is what is linear in between: the nodes' are applied to all samples at once, and no sample needs a factor of its own.
    squared = torch.einsum("ng,gij,nj->ni", hats, back, centred).square().sum(-1)
    joint = log_share - 0.5 * squared[:, None] * (-2.0 * log_scale).exp() - dim * log_scale
    return joint, -(hats @ back.diagonal(dim1=-2, dim2=-1)).log().sum(-1)


def _robust_start(z: Tensor) -> Tensor:
    """Weights ``(N, 1)`` that fall with the squared distance from the median, in units of the median distance of each latent."""
    distance = (z - z.median(0).values).abs()
    return 1.0 / (1.0 + (distance / distance.median(0).values.clamp_min(1e-150)).square().mean(-1, keepdim=True))
