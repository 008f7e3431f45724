"""Latent models that predict z_t in closed form: of neighbouring pairs and of independent sources. They serve while the encoder is trained.

Each maps measurements and their mask to a :class:`~ldm_filter.types.Prediction`, from the latents before each step alone; a new one needs
nothing else, and inherits the contract test in ``tests/models/test_predictors.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm_filter.core.directional import normalise
from ldm_filter.core.linalg import round_cov
from ldm_filter.models.factors import factor
from ldm_filter.types import Gaussian, Prediction, Sources, VonMisesFisher

__all__ = ["PairPredictor", "PredictiveDensity", "SourcePredictor", "earlier"]


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
