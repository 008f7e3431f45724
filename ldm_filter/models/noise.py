"""Learned noise that is not fixed beforehand: process noise that grows after surprises, measurement noise of the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm_filter.core.linalg import cholesky
from ldm_filter.core.nonlinear import AdaptiveNoise
from ldm_filter.models.factors import factor, unfactor
from ldm_filter.models.networks import random_layer

__all__ = ["AdaptiveProcessNoise", "StateNoise"]


class AdaptiveProcessNoise(nn.Module):
    """Q_t = Q + a(s_{t-1}) D: process noise for systems that jump, from innovations before t alone.

        x_t = log((1 + e_t' S_t^-1 e_t / m) / 2),     s_t = r s_{t-1} + (1 - r) x_t  for r in ``decays``,     a = softplus(network(s))

    x is 0 for a typical innovation, and where nothing was observed. Because Q_t has not seen z_t, p(z_t | z_<t) stays a density and
    the filter's likelihood can be compared with any other; setting Q_t from the innovation of the same step would not leave it one.

    Args:
        state_dim: n.
        decays: r, how long each trace of the surprises lasts; 0 holds the last one alone.
        hidden: width of the network. generator: source of the starting values.

    Source:
        The idea of Q from recent innovations: Mikulasch and Zenke, arXiv 2605.03517; older: R. K. Mehra, IEEE Trans. Autom. Control 15 (1970).
    """

    decays: Tensor

    def __init__(
        self, state_dim: int, decays: tuple[float, ...] = (0.0, 0.5, 0.8), hidden: int = 16, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.state_dim = state_dim
        self.register_buffer("decays", torch.tensor(decays))
        self.direct = nn.Linear(len(decays), 1)
        self.network = nn.Sequential(random_layer(len(decays), hidden, generator), nn.Tanh(), nn.Linear(hidden, 1, bias=False))
        with torch.no_grad():
            self.network[-1].weight.zero_()  # type: ignore[operator]
            self.direct.weight.copy_(torch.tensor([4.0] + [0.0] * (len(decays) - 1)))
            self.direct.bias.fill_(-6.0)  # next to nothing until an innovation has ten times its usual square
        self.factor = nn.Parameter(torch.zeros(state_dim, state_dim))

    def rules(self) -> AdaptiveNoise:
        """For :class:`~ldm_filter.core.nonlinear.NonlinearStateSpace`, in float64."""
        decays = self.decays.double()
        root = factor(self.factor)
        cov = root @ root.mT

        def remember(memory: Tensor, surprise: Tensor) -> Tensor:
            level = ((1.0 + surprise.unsqueeze(-1)) / 2.0).log()
            return decays * memory + (1.0 - decays) * level

        def extra_cov(memory: Tensor) -> Tensor:
            return self.amount(memory).double()[..., None, None] * cov

        return AdaptiveNoise(torch.zeros_like(decays), remember, extra_cov)

    def amount(self, memory: Tensor) -> Tensor:
        """a(s) of traces ``(..., k)``, shape ``(...)``."""
        traces = memory.to(self.direct.weight.dtype)
        return nn.functional.softplus(self.direct(traces) + self.network(traces)).squeeze(-1)

    @torch.no_grad()
    def set_scale(self, cov: Tensor) -> None:
        """Start D at a covariance of the state ``(n, n)``: a jump may lead anywhere."""
        self.factor.copy_(unfactor(cholesky(cov.double(), "cov")))


class StateNoise(nn.Module):
    """s(h): a factor on the standard deviations of the measurement, a network of the predicted state.

        R_t(h) = s^2 R_t,     s = exp(3 tanh(network(h / spread) / 3)),     1 at the start

    One factor for all latents: these are known up to an affine map only, and a factor for each would mean another noise in each of their bases.
    (Files of before hold one for each; their models keep it.)

    Args:
        state_dim: n. latent_dim: m. hidden: width of the network. generator: source of the starting values.
    """

    spread: Tensor

    def __init__(self, state_dim: int, latent_dim: int, hidden: int = 32, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.state_dim, self.latent_dim = state_dim, latent_dim
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first, second = random_layer(state_dim, hidden, generator), random_layer(hidden, hidden, generator)
        self.network = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)
        self.register_buffer("spread", torch.ones(state_dim))

    def scales(self) -> Callable[[Tensor], Tensor]:
        """States ``(..., n)`` -> factors ``(..., m)``, for :class:`~ldm_filter.core.nonlinear.NonlinearStateSpace`."""

        def scale(state: Tensor) -> Tensor:
            raw = self.network(state.to(self.spread.dtype) / self.spread)
            # Softly kept within a factor of 20: a step that is lost for good, or certain, teaches nothing.
            return (3.0 * torch.tanh(raw / 3.0)).exp().to(state.dtype).expand(*state.shape[:-1], self.latent_dim)

        return scale

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        weight = state_dict.get(f"{prefix}network.4.weight")
        if weight is not None and len(weight) == self.latent_dim:
            self.network[4] = nn.Linear(weight.shape[1], self.latent_dim).to(self.spread)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def set_scale(self, cov: Tensor) -> None:
        """Measure states in their standard deviations, of a covariance ``(n, n)``."""
        self.spread.copy_(cov.diagonal().clamp_min(1e-12).sqrt())
