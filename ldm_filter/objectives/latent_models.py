"""log P(z_t | z_<t) under a latent model: the *alignment* term of the objective."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ldm_filter.core.gaussian import log_density
from ldm_filter.core.kalman import filter_moments, filter_sequence
from ldm_filter.types import Context, FilterResult, Gaussian, StateSpace

__all__ = ["LatentModel", "kalman_log_density", "predictive_log_density"]


class LatentModel(Protocol):
    """What the alignment asks of a latent model: :class:`ldm_filter.models.base.Dynamics` has it."""

    def filter(self, measurements: Gaussian, observed: Tensor | None = ..., context: Context = ...) -> FilterResult: ...

    def moments(self, measurements: Gaussian, observed: Tensor | None = ..., context: Context = ...) -> tuple[Gaussian, Tensor]: ...


def predictive_log_density(
    model: LatentModel, measurements: Gaussian, observed: Tensor | None = None, context: Context | None = None, detach_target: bool = False
) -> Tensor:
    """log P(z_t | z_<t), ``(B, T)``, under any latent model: see :func:`kalman_log_density`, which is that of a linear-Gaussian one.

    Args:
        model: dynamics, which filter in their own way.
        measurements, observed, detach_target: as for :func:`kalman_log_density`.
        context: time steps and inputs of the batch.
    """
    context = Context() if context is None else context
    if not detach_target:
        return model.moments(measurements, observed, context)[1]
    return _plug_in(model.filter(measurements, observed, context).projected, measurements, observed)


def kalman_log_density(ssm: StateSpace, measurements: Gaussian, observed: Tensor | None = None, detach_target: bool = False) -> Tensor:
    """Predictive log-density of the latents under the Kalman filter.

        log P(z_t | z_<t) = log N(z_t; C h_{t|t-1}, S_t),    S_t = C P_{t|t-1} C' + R_t        (arXiv 2605.03517, eq. 15)

    Args:
        ssm: the latent state-space model.
        measurements: z_t ``(B, T, m)`` and R_t.
        observed: bool ``(B, T)``, or None where all is observed.
        detach_target: log P(SG[z_t] | z_<t), the conditional plug-in of eq. 14: the target in the residual passes no gradient.

    Returns:
        ``(B, T)``, 0 at unobserved steps.
    """
    if not detach_target:
        return filter_moments(ssm, measurements, observed)[1]
    return _plug_in(filter_sequence(ssm, measurements, observed).projected, measurements, observed)


def _plug_in(projected: Gaussian, measurements: Gaussian, observed: Tensor | None) -> Tensor:
    """The density of targets that pass no gradient."""
    target = measurements.mean.detach()
    if observed is None:
        return log_density(target, projected)
    # Filled before and masked after: a NaN that is only masked after still reaches the gradient.
    target = target.masked_fill(~observed.unsqueeze(-1), 0.0)
    return log_density(target, projected).masked_fill(~observed, 0.0)
