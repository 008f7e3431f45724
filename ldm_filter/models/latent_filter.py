"""Encoder + dynamics: the module that training fits and inference runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldm_filter.core.kalman import filter_moments, filter_sequence, predict
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.models.canonical import canonical_transform, change_basis
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.types import FilterResult, Gaussian, SmootherResult

__all__ = ["LatentFilter"]


class LatentFilter(nn.Module):
    """A learned measurement model in front of an exact Kalman filter.

    Args:
        encoder: observations ``(B, T, *event)`` and their mask -> :class:`~ldm_filter.types.Gaussian` measurements.
        dynamics: parameters -> :class:`~ldm_filter.types.StateSpace`.

    Shapes:
        values, observed: ``(B, T, *event)``. A step with no entry observed is skipped by the filter.

    Raises:
        ValueError: the encoder's latents are not those of the dynamics.
    """

    def __init__(self, encoder: Encoder, dynamics: LinearDynamics) -> None:
        super().__init__()
        if encoder.latent_dim != dynamics.latent_dim:
            raise ValueError(f"encoder gives {encoder.latent_dim} latents, dynamics expect {dynamics.latent_dim}; use one latent_dim for both")
        self.encoder, self.dynamics = encoder, dynamics

    def encode(self, values: Tensor, observed: Tensor) -> tuple[Gaussian, Tensor]:
        """Measurements and the steps ``(B, T)`` at which there is one."""
        return self.encoder(values, observed), observed.flatten(2).any(-1)

    def forward(self, values: Tensor, observed: Tensor) -> FilterResult:
        """Filter whole series: predicted, filtered, projected and log-likelihood."""
        measurements, seen = self.encode(values, observed)
        return filter_sequence(self.dynamics(), measurements, seen)

    def moments(self, values: Tensor, observed: Tensor) -> tuple[Gaussian, Tensor]:
        """Filtered moments and log-likelihood only."""
        measurements, seen = self.encode(values, observed)
        return filter_moments(self.dynamics(), measurements, seen)

    def smooth(self, values: Tensor, observed: Tensor) -> tuple[FilterResult, SmootherResult]:
        """Filter, then Rauch-Tung-Striebel smoothing."""
        result = self(values, observed)
        return result, smooth_sequence(self.dynamics(), result)

    def filter_chunks(self, values: Tensor, observed: Tensor, chunk: int) -> Iterator[tuple[Gaussian, Tensor, FilterResult]]:
        """Filter chunk after chunk, carrying the belief, so that memory is bounded for a series of any length.

        Yields:
            measurements, seen steps ``(B, t)`` and the result of each chunk; joined they equal one pass.

        Raises:
            ValueError: ``chunk`` below 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}, expected at least 1 step")
        ssm = self.dynamics()
        for start in range(0, values.shape[1], chunk):
            measurements, seen = self.encode(values[:, start : start + chunk], observed[:, start : start + chunk])
            result = filter_sequence(ssm, measurements, seen)
            yield measurements, seen, result
            last = Gaussian(result.filtered.mean[:, -1], result.filtered.cov[:, -1])
            ssm = ssm._replace(initial=predict(last, ssm.transition_matrix, ssm.transition_offset, ssm.transition_cov))

    @torch.no_grad()
    def centre(self) -> None:
        """Move the origins of state and latents to their stationary means, so that both offsets of the model are 0.

        h <- h - b,   z <- z - (C b + c)
        """
        ssm, dynamics = self.dynamics.exact(), self.dynamics
        level = ssm.observation_matrix @ dynamics.mean.double() + ssm.observation_offset
        dynamics.initial_mean.sub_(dynamics.mean)
        dynamics.mean.zero_()
        dynamics.observation_offset.zero_()
        self.encoder.rescale(level.to(dynamics.mean.dtype), torch.ones_like(level, dtype=dynamics.mean.dtype))

    @torch.no_grad()
    def fix_gauge(self, mean: Tensor, std: Tensor) -> None:
        """Give every latent zero mean and unit variance on the training data: z <- (z - mean) / std, in encoder and dynamics alike.

        The filtered states stay what they are; the log-likelihood of a step grows by sum log std, the volume that z has lost.

        Args:
            mean, std: ``(m,)`` of the present latents.

        Raises:
            ValueError: the observation matrix is [I 0] and cannot take the scale up, or a std that is not positive.
        """
        if not self.dynamics.learned_observation:
            raise ValueError('the gauge needs observation="learned"; a fixed [I 0] holds the scale already')
        self.encoder.rescale(mean, std)
        self.dynamics.observation.div_(std[:, None])
        self.dynamics.observation_offset.sub_(mean).div_(std)

    @torch.no_grad()
    def canonicalise(self) -> Tensor:
        """Bring the state to its canonical form (see :func:`~ldm_filter.models.canonical.canonical_transform`).

        Returns:
            T, ``(n, n)``: new state = T old state.

        Raises:
            ValueError: the observation matrix is [I 0], which fixes the basis of the state.
        """
        if not self.dynamics.learned_observation:
            raise ValueError('the canonical form needs observation="learned"; a fixed [I 0] holds the basis of the state already')
        ssm = self.dynamics.exact()
        transform = canonical_transform(ssm, diagonal_cov=not self.dynamics.full_cov)
        self.dynamics.set_matrices(change_basis(ssm, transform))
        return transform
