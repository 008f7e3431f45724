"""Entropy of latents on the unit sphere, with respect to its area."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_filter.core.directional import log_normaliser
from ldm_filter.objectives.entropy import nearest_neighbour_entropy
from ldm_filter.objectives.samples import check, thin

__all__ = ["SPHERE_ENTROPIES", "sphere_knn", "vmf_cross_entropy", "vmf_kde"]


def vmf_kde(samples: Tensor, condition: Tensor | None = None, factors: int = 1, concentration: float = 10.0, max_samples: int = 2048) -> Tensor:
    """Leave-one-out kernel-density entropy with von Mises-Fisher kernels.

        H = -1/N sum_i log 1/(N - 1) sum_{j != i} C(kappa) exp(kappa z_i'z_j)                  (eq. 32)

    With two views of N/2 events each and kappa = 1 / tau this is the contrastive term of SimCLR, up to constants.

    Args:
        samples: ``(N, factors * D)``, unit vectors of D entries side by side.
        condition: ignored.
        factors: 2 for the joint entropy of pairs (product kernel).
        concentration: kappa, the kernel's. max_samples: more than this are thinned evenly, as the cost is quadratic.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: fewer than two samples, one not finite, D below 2, or a concentration out of range.
    """
    check(samples, 2)
    z = thin(samples, max_samples)
    normaliser = factors * log_normaliser(z.shape[1] // factors, torch.tensor(concentration, dtype=torch.float64))
    energy = (concentration * (z @ z.mT)).fill_diagonal_(-torch.inf)
    return math.log(len(z) - 1) - float(normaliser) - torch.logsumexp(energy, dim=-1).mean()


def vmf_cross_entropy(directions: Tensor, samples: Tensor, concentration: float = 10.0) -> Tensor:
    """The same kernel density of the samples, asked at predicted directions instead of at the samples: InfoNCE's denominator.

        -1/n sum_i log 1/N sum_j C(kappa) exp(kappa mu_i'z_j)

    Returns:
        Per direction, ``(n,)``, nats.
    """
    check(samples, 1)
    normaliser = log_normaliser(samples.shape[1], torch.tensor(concentration, dtype=torch.float64))
    return math.log(len(samples)) - float(normaliser) - torch.logsumexp(concentration * (directions @ samples.mT), dim=-1)


def sphere_knn(samples: Tensor, condition: Tensor | None = None, factors: int = 1, k: int = 3, max_samples: int = 2048) -> Tensor:
    """Nearest-neighbour entropy (eq. 33) on a surface of ``factors (D - 1)`` dimensions, in which small balls are flat.

    Args:
        samples: ``(N, factors * D)``, unit vectors of D entries side by side.
        condition: ignored. factors: 2 for the joint entropy of pairs.
        k, max_samples: as of :func:`~ldm_filter.objectives.entropy.knn`.

    Returns:
        Scalar, nats.
    """
    return nearest_neighbour_entropy(samples, samples.shape[-1] - factors, k, max_samples)


SPHERE_ENTROPIES = {"kde": vmf_kde, "knn": sphere_knn}
"""Estimators on the sphere by the name that ``LDMFilter(objective=...)`` takes."""
