"""R, the covariance of a measurement: one for all, a network of the observation's noise features, or what a user's network says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_filter.core.linalg import cholesky, round_cov
from ldm_filter.models.factors import factor, unfactor

__all__ = ["ConstantNoise", "InputNoise", "NoiseLevel", "OwnNoise", "principal_components"]

# Of a matrix whose principal components are sought.
MOST_ENTRIES = 1 << 25


class ConstantNoise(nn.Module):
    """One measurement covariance R = L L', full, ``(1, 1, m, m)``."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(-0.5 * torch.eye(latent_dim))

    def forward(self, normalised: Tensor, missing: Tensor | None = None) -> Tensor:
        return round_cov(self.covariance(), self.factor.dtype)[None, None]

    def covariance(self) -> Tensor:
        """R ``(m, m)``, float64."""
        lower = factor(self.factor)
        return lower @ lower.mT

    @torch.no_grad()
    def set_covariance(self, cov: Tensor) -> None:
        """Start from a known R, ``(m, m)`` positive definite."""
        self.factor.copy_(unfactor(cholesky(cov.double(), "the measurement covariance")))


class OwnNoise(nn.Module):
    """R(x) = diag exp(bias + what a user's network says), softly kept within e^-12 to e^12."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((latent_dim,), -1.0))

    def forward(self, log_var: Tensor, missing: Tensor | None = None) -> Tensor:
        return _diagonal(self.bias + log_var)


class NoiseLevel(nn.Module):
    """An observation's noise level: the variance s that its leading principal components leave over, as s, sqrt s and log s.

    Standardised on training data by :meth:`fit_features`.

    Args:
        size: D, entries of an observation. raw: how many of these are features as well: all or none.
    """

    features_mean: Tensor
    features_std: Tensor
    components: Tensor

    def __init__(self, size: int, raw: int = 0) -> None:
        super().__init__()
        self.raw = raw
        self.register_buffer("components", torch.zeros(min(8, size // 2), size))
        self.register_buffer("features_mean", torch.zeros(3 + raw))
        self.register_buffer("features_std", torch.ones(3 + raw))

    def standardised(self, flat: Tensor, missing: Tensor | None = None) -> Tensor:
        """The features in their standard deviations, kept within 8 of them, ``(..., 3 [+ D])``."""
        return ((self.features(flat, missing) - self.features_mean) / self.features_std).clamp(-8.0, 8.0)

    def features(self, flat: Tensor, missing: Tensor | None = None) -> Tensor:
        """``(..., 3 [+ channels])`` of standardised values ``(..., D)``."""
        residual = flat - flat @ self.components.mT @ self.components
        if missing is None:
            level = residual.square().mean(-1, keepdim=True)
        else:
            seen = 1.0 - missing
            level = (residual.square() * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1.0)
        level = level + 1e-6
        return torch.cat([level, level.sqrt(), level.log(), *([flat] if self.raw else [])], dim=-1)

    @torch.no_grad()
    def fit_features(self, normalised: Tensor, missing: Tensor | None = None) -> None:
        """Set the principal components and the features' statistics from standardised training values ``(N, D)``, 0 where missing."""
        self.components.copy_(principal_components(normalised, len(self.components))[0])
        features = self.features(normalised, missing)
        self.features_mean.copy_(features.mean(0))
        self.features_std.copy_(features.std(0).clamp_min(1e-6))


class InputNoise(NoiseLevel):
    """R(x) = diag exp(g(features)): noisy observations get less weight.

    The features are the observation's noise level, and for short sensor vectors the values themselves.
    """

    def __init__(self, size: int, latent_dim: int, hidden: int = 32) -> None:
        super().__init__(size, raw=size if size <= 16 else 0)
        last = nn.Linear(hidden, latent_dim)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, -1.0)
        self.head = nn.Sequential(nn.Linear(3 + self.raw, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)

    def forward(self, normalised: Tensor, missing: Tensor | None = None) -> Tensor:
        return _diagonal(self.head(self.standardised(normalised.flatten(2), None if missing is None else missing.flatten(2))))


def _diagonal(log_var: Tensor) -> Tensor:
    """Softly kept within e^-12 to e^12 (latents have variance 1): no step can be taken for certain, or lost for good."""
    return torch.diag_embed((12.0 * torch.tanh(log_var / 12.0)).exp())


def principal_components(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading principal components of ``(N, D)``: directions ``(count, D)`` and standard deviations ``(count,)``.

    Directions beyond D or N are filled with zeros (deviation 0). The sign makes each direction's largest entry positive. Large
    observations are thinned, evenly, to about 250 MB of float64.
    """
    values = values[:: max(1, -(-values.numel() // MOST_ENTRIES))]
    centred = values.double() - values.double().mean(0)
    size = centred.shape[1]
    components, deviation = centred.new_zeros(count, size), centred.new_zeros(count)
    found = min(count, *centred.shape)
    if size <= 1024:
        eigenvalues, vectors = torch.linalg.eigh(centred.mT @ centred / len(centred))
        vectors, spread = vectors.flip(-1)[:, :found], eigenvalues.flip(-1)[:found].clamp_min(0.0).sqrt()
    else:
        with torch.random.fork_rng(devices=[]):  # the randomised decomposition draws from torch's own generator
            torch.manual_seed(0)
            _, singular, right = torch.svd_lowrank(centred, q=min(found + 8, *centred.shape), niter=4)
        vectors, spread = right[:, :found], singular[:found] / len(centred) ** 0.5
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    components[:found] = (vectors * signs).mT
    deviation[:found] = spread
    return components.to(values.dtype), deviation.to(values.dtype)
