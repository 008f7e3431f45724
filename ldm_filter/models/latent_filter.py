"""Encoder + dynamics: the module that training fits and inference runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldm_filter.models.base import NO_CONTEXT, Dynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.models.head import TargetHead
from ldm_filter.types import Context, FilterResult, Gaussian, SmootherResult

__all__ = ["LatentFilter"]


class LatentFilter(nn.Module):
    """A learned measurement model in front of the filter that belongs to the dynamics.

    Args:
        encoder: observations ``(B, T, *event)`` and their mask -> :class:`~ldm_filter.types.Gaussian` measurements.
        dynamics: how the latent state moves, and so how measurements are filtered: see :class:`~ldm_filter.models.base.Dynamics`.
        predictor: another latent model, ``(measurements, seen) -> Prediction``, that takes the dynamics' place in training.
        head: a read-out of targets that is trained with the filter, :class:`~ldm_filter.models.head.TargetHead`.

    Shapes:
        values, observed: ``(B, T, *event)``. A step with no entry observed is skipped by the filter. context: of the same T steps.

    Raises:
        ValueError: the encoder's latents are not those of the dynamics.
    """

    head: TargetHead | None

    def __init__(self, encoder: Encoder, dynamics: Dynamics, predictor: nn.Module | None = None, head: TargetHead | None = None) -> None:
        super().__init__()
        if encoder.latent_dim != dynamics.latent_dim:
            raise ValueError(f"encoder gives {encoder.latent_dim} latents, dynamics expect {dynamics.latent_dim}; use one latent_dim for both")
        self.encoder, self.dynamics, self.predictor, self.head = encoder, dynamics, predictor, head

    def encode(self, values: Tensor, observed: Tensor) -> tuple[Gaussian, Tensor]:
        """Measurements and the steps ``(B, T)`` at which there is one."""
        return self.encoder(values, observed), observed.flatten(2).any(-1)

    def mask(self, observed: Tensor) -> Tensor:
        """What the filter is told of the mask of the observations: ``(B, T)``, or ``(B, T, m)`` where each entry is a latent of its own."""
        return observed if self.encoder.channelwise else observed.flatten(2).any(-1)

    def forward(self, values: Tensor, observed: Tensor, context: Context = NO_CONTEXT) -> FilterResult:
        """Filter whole series: predicted, filtered, projected and log-likelihood."""
        return self.dynamics.filter(self.encoder(values, observed), self.mask(observed), context)

    def moments(self, values: Tensor, observed: Tensor, context: Context = NO_CONTEXT) -> tuple[Gaussian, Tensor]:
        """Filtered moments and log-likelihood only."""
        return self.dynamics.moments(self.encoder(values, observed), self.mask(observed), context)

    def smooth(self, values: Tensor, observed: Tensor, context: Context = NO_CONTEXT) -> tuple[FilterResult, SmootherResult]:
        """Filter, then fixed-interval smoothing."""
        result = self(values, observed, context)
        return result, self.dynamics.smooth(result, context)

    def filter_chunks(
        self, values: Tensor, observed: Tensor, chunk: int, context: Context = NO_CONTEXT
    ) -> Iterator[tuple[Gaussian, Tensor, FilterResult]]:
        """Filter chunk after chunk, carrying the belief, so that memory is bounded for a series of any length.

        Yields:
            measurements, seen steps ``(B, t)`` and the result of each chunk; joined they equal one pass.

        Raises:
            ValueError: ``chunk`` below 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}, expected at least 1 step")
        last: Gaussian | None = None
        memory: tuple[Tensor, ...] = ()
        for start in range(0, values.shape[1], chunk):
            stop = start + chunk
            initial = None if last is None else self.dynamics.predict(last, context.steps(start, start + 1), *memory)
            measurements, seen = self.encode(values[:, start:stop], observed[:, start:stop])
            mask = self.mask(observed[:, start:stop])
            result = self.dynamics.filter(measurements, mask, context.steps(start, stop), initial, *memory)
            yield measurements, seen, result
            after = self.dynamics.remember(measurements, mask, result, *memory)
            memory = () if after is None else (after[:, -1],)
            last = Gaussian(result.filtered.mean[:, -1], result.filtered.cov[:, -1])

    def with_inputs(self, belief: Gaussian, context: Context) -> Gaussian:
        """The belief about state and inputs together, which is what a read-out of a model with inputs reads: the inputs are known exactly.

        mean (h, u),   cov diag(P, 0)
        """
        inputs = self.dynamics.standardise(context.inputs)
        if inputs is None:
            return belief
        known = inputs.to(belief.mean).expand(*belief.mean.shape[:-1], -1)
        size = known.shape[-1]
        return Gaussian(torch.cat([belief.mean, known], dim=-1), nn.functional.pad(belief.cov, (0, size, 0, size)))

    @torch.no_grad()
    def centre(self) -> None:
        """Move the origins of state and latents to their stationary means, so that both offsets of the model are 0.

        h <- h - b,   z <- z - (C b + c)
        """
        level = self.dynamics.centre()
        self.encoder.rescale(level, torch.ones_like(level))

    @torch.no_grad()
    def fix_gauge(self, mean: Tensor, std: Tensor) -> None:
        """Give every latent zero mean and unit variance on the training data: z <- (z - mean) / std, in encoder and dynamics alike.

        The filtered states stay what they are; the log-likelihood of a step grows by sum log std, the volume that z has lost.

        Args:
            mean, std: ``(m,)`` of the present latents.

        Raises:
            ValueError: the observation matrix is [I 0] and cannot take the scale up, or a std that is not positive.
        """
        if not bool(((std > 0) & torch.isfinite(std)).all()):
            raise ValueError(f"std is {std.tolist()[:8]}, expected positive finite numbers; a latent that does not vary has no scale")
        self.dynamics.rescale_latents(mean, std)
        self.encoder.rescale(mean, std)

    @torch.no_grad()
    def scale_covariances(self, factor: float) -> bool:
        """Multiply Q, R and the initial covariance by one factor: gains and means stay, every covariance is multiplied, NIS divided by it.

        Returns:
            False, with nothing changed, where the dynamics cannot.

        Raises:
            ValueError: a factor that is not positive and finite.
        """
        if not 0.0 < factor < float("inf"):
            raise ValueError(f"factor is {factor}, expected a positive finite number")
        scaled = self.dynamics.scale_covariances(factor)
        if scaled:
            self.encoder.scale_covariances(factor)
        return scaled

    @torch.no_grad()
    def canonicalise(self) -> Tensor:
        """Bring the state to its canonical form (see :func:`~ldm_filter.models.canonical.canonical_transform`).

        Returns:
            T, ``(n, n)``: new state = T old state.

        Raises:
            ValueError: the observation matrix is [I 0], which fixes the basis of the state.
        """
        return self.dynamics.canonicalise()
