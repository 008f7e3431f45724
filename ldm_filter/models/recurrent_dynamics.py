"""Recurrent dynamics: a network predicts the next latent, and there is no hidden state with a belief behind it."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from ldm_filter.core.gaussian import log_density
from ldm_filter.core.inputs import check_mask
from ldm_filter.models.base import NO_CONTEXT, Dynamics
from ldm_filter.models.factors import factor, unfactor
from ldm_filter.models.recurrent import RecurrentPredictor
from ldm_filter.types import Context, FilterResult, Gaussian, SmootherResult, StateSpace

__all__ = ["RecurrentDynamics"]


class RecurrentDynamics(Dynamics):
    """z_t ~ N(head(g_t), Sigma),   g_{t+1} = GRU(g_t, z_t): the paper's recurrent predictor.

    What is defined, exactly, is the prediction one step ahead, p(z_t | z_<t). The summary g is no random variable, so the state is the latent
    itself, and it is observed without noise: *predicted* is the network's Gaussian, *filtered* is the measurement (covariance 0) where there
    is one and the prediction where there is none. There is no way back in time (no smoothing, no posterior paths), and the spread
    Sigma of one step says nothing of several, so that a forecast reaches one step; both are refused. The measurement covariance R plays no part.

    Args:
        latent_dim: m, also the size of the state.
        hidden: of g.
    """

    def __init__(self, latent_dim: int, hidden: int = 32) -> None:
        super().__init__()
        self.state_dim = self.latent_dim = latent_dim
        self.hidden = hidden
        self.predictor = RecurrentPredictor(latent_dim, hidden=hidden)

    def state_space(self, context: Context = NO_CONTEXT) -> StateSpace:
        self._refuse("a state-space model")

    def initial(self) -> Gaussian:
        """p(z_0), mean ``(m,)``, cov ``(m, m)``."""
        like = next(self.predictor.parameters())
        mean, cov = self._density(self._summaries(like.new_zeros(1, 0, self.latent_dim), None, None)[:, 0])
        return Gaussian(mean[0], cov)

    def filter(
        self,
        measurements: Gaussian,
        observed: Tensor | None = None,
        context: Context = NO_CONTEXT,
        initial: Gaussian | None = None,
        memory: Tensor | None = None,
    ) -> FilterResult:
        """As of :class:`Dynamics`; ``memory`` is g after the piece before, and ``initial`` then the prediction that follows from it."""
        if initial is not None and memory is None:
            raise ValueError("initial is given without a memory, but a recurrent prediction depends on the whole past; leave initial out")
        z, seen = measurements.mean, self._mask(measurements, observed)
        mean, cov = self._density(self._summaries(z, seen, memory)[:, :-1])
        projected = Gaussian(mean, cov.expand(1, z.shape[1], -1, -1))
        filled = torch.where(seen, z, mean)
        filtered = Gaussian(filled, cov.expand(*z.shape, z.shape[-1]).masked_fill(seen.unsqueeze(-1), 0.0))
        density = log_density(filled, projected).masked_fill(~seen.squeeze(-1), 0.0)
        return FilterResult(projected, filtered, projected, density)

    def moments(
        self, measurements: Gaussian, observed: Tensor | None = None, context: Context = NO_CONTEXT, initial: Gaussian | None = None
    ) -> tuple[Gaussian, Tensor]:
        result = self.filter(measurements, observed, context, initial)
        return result.filtered, result.log_likelihood

    def remember(self, measurements: Gaussian, observed: Tensor | None, result: FilterResult, memory: Tensor | None = None) -> Tensor:
        """g after every step, ``(B, T, hidden)``."""
        return self._summaries(measurements.mean, self._mask(measurements, observed), memory)[:, 1:]

    def predict(self, belief: Gaussian, context: Context = NO_CONTEXT, memory: Tensor | None = None) -> Gaussian:
        """p(z_{t+1} | z_<=t) of the summary that is in ``memory`` ``(B, hidden)``."""
        if memory is None:
            raise ValueError("memory is None, but a recurrent prediction depends on the whole past; give what remember() returned")
        mean, cov = self._density(memory)
        return Gaussian(mean.to(belief.mean.dtype), cov.expand(len(mean), -1, -1).to(belief.mean.dtype))

    def update(
        self, predicted: Gaussian, measurement: Gaussian, observed: Tensor | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Gaussian, Tensor]:
        """The measurement itself where there is one ``(B, m)``, the prediction where there is none; and the log-density ``(B,)``."""
        piece = Gaussian(measurement.mean.unsqueeze(1), measurement.cov)
        seen = self._mask(piece, None if observed is None else observed.unsqueeze(1))[:, 0]
        filled = torch.where(seen, measurement.mean, predicted.mean)
        cov = predicted.cov.expand(*filled.shape, filled.shape[-1]).masked_fill(seen.unsqueeze(-1), 0.0)
        return Gaussian(filled, cov), log_density(filled, predicted).masked_fill(~seen.squeeze(-1), 0.0)

    def project(self, belief: Gaussian, measurement_cov: Tensor, context: Context = NO_CONTEXT) -> Gaussian:
        """The belief itself: the state is the latent, and R plays no part."""
        return belief

    def smooth(self, result: FilterResult, context: Context = NO_CONTEXT) -> SmootherResult:
        self._refuse("a smoother: it runs one way")

    def forecast(self, belief: Gaussian, horizon: int, context: Context = NO_CONTEXT, memory: Tensor | None = None) -> Gaussian:
        """One step ahead, ``(B, 1, m)``.

        Raises:
            ValueError: more than one step.
        """
        if horizon > 1:
            self._refuse(f"a distribution {horizon} steps ahead, only of the next step: horizon=1 works")
        mean, cov = self.predict(belief, context, memory)
        return Gaussian(mean.unsqueeze(1), cov.unsqueeze(1))

    def prior_paths(
        self, steps: int, generator: torch.Generator, num_paths: int = 1, context: Context = NO_CONTEXT, initial: Gaussian | None = None
    ) -> Tensor:
        """Draws from the model alone, one latent after the other, ``(num_paths, 1, T, m)``: exact, step by step."""
        if initial is not None:
            self._refuse("paths that start from a belief")
        like = next(self.predictor.parameters())
        summary = self._summaries(like.new_zeros(num_paths, 0, self.latent_dim), None, None)[:, 0]
        drawn = []
        for _ in range(steps):
            mean, cov = self._density(summary)
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            drawn.append(mean + noise @ torch.linalg.cholesky(cov.double()).to(mean.dtype).mT)
            summary = self._summaries(drawn[-1].unsqueeze(1), torch.ones_like(mean[:, :1]).bool().unsqueeze(1), summary)[:, -1]
        return torch.stack(drawn, dim=1).unsqueeze(1)

    def posterior_paths(self, result: FilterResult, generator: torch.Generator, num_paths: int = 1, context: Context = NO_CONTEXT) -> Tensor:
        self._refuse("a posterior to draw from")

    @torch.no_grad()
    def scale_covariances(self, factor_: float) -> bool:
        """Sigma <- factor Sigma."""
        free = self.predictor.density.free
        assert isinstance(free, nn.Parameter)
        free.copy_(unfactor(factor(free) * factor_**0.5))
        return True

    def _density(self, summary: Tensor) -> Gaussian:
        """p(z | g): mean ``(..., m)``, cov ``(m, m)`` without leading dimensions, or those of (B, T)."""
        found = self.predictor.density(self.predictor.head(summary))
        assert isinstance(found, Gaussian)
        return Gaussian(found.mean, found.cov if summary.ndim == 3 else found.cov[0, 0])

    def _summaries(self, z: Tensor, seen: Tensor | None, memory: Tensor | None) -> Tensor:
        """g before the first step and after every step of ``z (B, T, m)``: ``(B, T + 1, hidden)``."""
        nothing = z.new_zeros(len(z), 1, self.latent_dim)
        if memory is None:
            before, known = nothing, torch.zeros_like(nothing[..., 0], dtype=torch.bool)
            start = self.predictor.summaries(before, known)
        else:
            start = memory.to(z.dtype).unsqueeze(1)
        if seen is None or not z.shape[1]:
            return start
        filled = torch.where(seen, z, torch.zeros_like(z))
        return torch.cat([start, self.predictor.summaries(filled, seen.squeeze(-1), start[:, 0])], dim=1)

    def _mask(self, measurements: Gaussian, observed: Tensor | None) -> Tensor:
        """``(B, T, 1)``."""
        z, mask = measurements.mean, check_mask(observed, measurements.mean)
        if mask is None:
            return torch.ones_like(z[..., :1], dtype=torch.bool)
        seen = mask.all(-1, keepdim=True)
        if not bool((mask.any(-1, keepdim=True) == seen).all()):
            raise ValueError("observed hides single latents of a step; a recurrent prediction takes whole steps: use a mask (B, T)")
        return seen.expand(*z.shape[:2], 1)

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"recurrent dynamics have no posterior and so not {what}; use dynamics='linear' with latent_model='recurrent', which fits a filter "
            "to the latents that the recurrent model has taught, or nonlinear dynamics"
        )
