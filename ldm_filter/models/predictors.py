"""Latent models that predict z_t in closed form: of neighbouring pairs and of independent sources. They serve while the encoder is trained.

Each maps measurements and their mask to a :class:`~ldm_filter.types.Prediction`, from the latents before each step alone; a new one needs
nothing else, and inherits the contract test in ``tests/models/test_predictors.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm_filter.core.directional import normalise
from ldm_filter.core.linalg import round_cov, symmetrise
from ldm_filter.models.factors import factor
from ldm_filter.types import Gaussian, Prediction, Sources, VonMisesFisher

__all__ = ["PairPredictor", "PredictiveDensity", "RegressionPredictor", "SourcePredictor", "earlier"]


class PredictiveDensity(nn.Module):
    """A location with a spread that depends on nothing (as Theorem 1 asks): N(location, Sigma), or von Mises-Fisher around its direction.

    Args:
        latent_dim: m.
        space: ``"plane"`` or ``"sphere"``.
        variance: sigma^2 of Sigma = sigma^2 I; None: Sigma is learned, full.
        concentration: kappa; None: learned.

    Raises:
        ValueError: a spread of the other space or not positive, or the sphere in one dimension.
    """

    fixed: Tensor

    def __init__(self, latent_dim: int, space: str = "plane", variance: float | None = None, concentration: float | None = None) -> None:
        super().__init__()
        self.space = space
        if space not in ("plane", "sphere"):
            raise ValueError(f"space is {space!r}, expected 'plane' or 'sphere'")
        if space == "sphere" and latent_dim < 2:
            raise ValueError(f"latent_dim is {latent_dim}, expected at least 2 on the sphere: in one dimension it is two points")
        name, other = ("variance", concentration) if space == "plane" else ("concentration", variance)
        if other is not None:
            raise ValueError(f"the {space} takes a {name} and no other spread, and {other} came as the other")
        spread = variance if space == "plane" else concentration
        self.free: nn.Parameter | None = None
        if spread is None:
            self.free = nn.Parameter(-0.5 * torch.eye(latent_dim) if space == "plane" else torch.tensor(math.log(10.0)))
            return
        if not 0.0 < spread < math.inf:
            raise ValueError(f"{name} is {spread}, expected a positive number, or None to learn it")
        self.register_buffer("fixed", spread * torch.eye(latent_dim) if space == "plane" else torch.tensor(spread))

    def forward(self, location: Tensor) -> Gaussian | VonMisesFisher:
        if self.space == "sphere":
            # Softly kept below e^6.9, where the density is some degrees wide: a deterministic latent would have no maximum.
            kappa = self.fixed if self.free is None else (6.9 * torch.tanh(self.free / 6.9)).exp()
            return VonMisesFisher(normalise(location), kappa)
        if self.free is None:
            return Gaussian(location, self.fixed[None, None])
        lower = factor(self.free)
        return Gaussian(location, round_cov(lower @ lower.mT, self.free.dtype)[None, None])


def earlier(measurements: Gaussian, observed: Tensor) -> tuple[Tensor, Tensor]:
    """z_{t-1} ``(B, T, m)``, 0 where there is none, and bool ``(B, T)``, whether there is one."""
    seen = torch.cat([torch.zeros_like(observed[:, :1]), observed[:, :-1]], dim=1)
    before = torch.cat([torch.zeros_like(measurements.mean[:, :1]), measurements.mean[:, :-1]], dim=1)
    return torch.where(seen.unsqueeze(-1), before, torch.zeros_like(before)), seen


class PairPredictor(nn.Module):
    """Neighbours in time: P(z_t | z_{t-1}) around z_{t-1} itself, or around z_{t-1} + network(z_{t-1}).

    A step counts where it and the one before it are observed.

    Args:
        latent_dim: m.
        space, variance, concentration: of the density, see :class:`PredictiveDensity`.
        learned: with a network; its last layer starts at zero, so that both start alike.
        hidden: its width.
    """

    def __init__(
        self,
        latent_dim: int,
        space: str = "plane",
        learned: bool = False,
        variance: float | None = None,
        concentration: float | None = None,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.density = PredictiveDensity(latent_dim, space, variance, concentration)
        self.network: nn.Module | None = None
        if learned:
            last = nn.Linear(hidden, latent_dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.network = nn.Sequential(nn.Linear(latent_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)

    def forward(self, measurements: Gaussian, observed: Tensor) -> Prediction:
        before, seen = earlier(measurements, observed)
        location = before if self.network is None else before + self.network(before)
        return Prediction(self.density(location), observed & seen)


class RegressionPredictor(nn.Module):
    """Neighbours in time, P(z_t | z_{t-1}) = N(B z_{t-1} + b, Sigma), with B, b and Sigma the maximum likelihood of the batch at hand.

    The predictor stands at its optimum at every step of training: no rate of its own, and always ahead of the encoder. Because it is an
    optimum, the gradient with B, b and Sigma held fixed is that of the likelihood maximised over them. With the log-determinant F_MI is then the
    Gaussian mutual information of neighbours, -1/2 sum_i log(1 - rho_i^2) over their canonical correlations.

    In evaluation mode B, b and Sigma come from the moments of the training batches, averaged exponentially, and a step is predicted from those
    before it alone. A step counts where it and the one before it are observed. Each process of a data-parallel run has its own batch.

    Args:
        latent_dim: m.
        memory: of the average, the weight of the past against a new batch.

    Raises:
        ValueError: a memory outside [0, 1).
    """

    mean: Tensor
    cov: Tensor
    seen_batches: Tensor

    def __init__(self, latent_dim: int, memory: float = 0.9) -> None:
        super().__init__()
        if not 0.0 <= memory < 1.0:
            raise ValueError(f"memory is {memory}, expected a number from 0 to below 1")
        self.latent_dim, self.memory = latent_dim, memory
        self.register_buffer("mean", torch.zeros(2 * latent_dim, dtype=torch.float64))
        self.register_buffer("cov", torch.eye(2 * latent_dim, dtype=torch.float64))
        self.register_buffer("seen_batches", torch.zeros(()))

    def forward(self, measurements: Gaussian, observed: Tensor) -> Prediction:
        before, seen = earlier(measurements, observed)
        counted = observed & seen
        mean, cov = self._moments(torch.cat([before[counted], measurements.mean[counted]], dim=-1).detach().double())
        m = self.latent_dim
        slope = torch.linalg.solve(cov[:m, :m], cov[:m, m:]).mT
        rest = symmetrise(cov[m:, m:] - slope @ cov[:m, m:])
        slope, offset = slope.to(before.dtype), (mean[m:] - slope @ mean[:m]).to(before.dtype)
        return Prediction(Gaussian(before @ slope.mT + offset, round_cov(rest, before.dtype)[None, None]), counted)

    @torch.no_grad()
    def _moments(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of pairs ``(N, 2 m)``: of the batch in training, where it holds enough, else the averaged ones."""
        if not self.training:
            return self.mean.double(), self.cov.double()
        if len(pairs) <= 4 * self.latent_dim:
            raise ValueError(
                f"the batch holds {len(pairs)} pairs of neighbours, and {self.latent_dim} latents need more than {4 * self.latent_dim}; "
                "use a larger batch_size or latent_model='pair-predictor'"
            )
        mean = pairs.mean(0)
        cov = (pairs - mean).mT @ (pairs - mean) / len(pairs)
        cov = cov + torch.diag_embed(1e-8 * cov.diagonal() + 1e-12)  # a latent that copies another has no inverse
        kept = torch.where(self.seen_batches > 0, self.memory, 0.0)
        self.mean.copy_(kept * self.mean + (1.0 - kept) * mean)
        self.cov.copy_(kept * self.cov + (1.0 - kept) * cov)
        self.seen_batches.add_(1)
        return mean, cov


class SourcePredictor(nn.Module):
    """Independent sources z_td = a_d z_{t-1,d} + e_td, e of a standard density: linear ICA in time.

    Known densities of scale 1: the encoder takes the scale up. Without a past (``temporal=False``) every observed step counts, else those
    with an observed neighbour before them. Gaussian sources can be told apart only by their a_d.

    Args:
        latent_dim: m.
        family: ``"gaussian" | "logistic" | "laplace"``.
        temporal: a is learned, each in (-1, 1), starting at different values; else it is 0.
    """

    def __init__(self, latent_dim: int, family: str = "logistic", temporal: bool = True) -> None:
        super().__init__()
        self.family = family
        self.memory = nn.Parameter(torch.atanh(torch.linspace(0.3, 0.95, latent_dim))) if temporal else None

    def forward(self, measurements: Gaussian, observed: Tensor) -> Prediction:
        if self.memory is None:
            return Prediction(Sources(torch.zeros_like(measurements.mean), self.family), observed)
        before, seen = earlier(measurements, observed)
        return Prediction(Sources(torch.tanh(self.memory) * before, self.family), observed & seen)
