"""log P(z_t | z_<t) under a latent model: the *alignment* term of the objective.

A latent model is dynamics, which filter in their own way, or anything that hands over a :class:`~ldm_filter.types.Prediction`: the
predictive density of every step in closed form and which steps have one. Nothing else is asked of it.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ldm_filter.core import directional
from ldm_filter.core.gaussian import log_density
from ldm_filter.core.kalman import filter_moments, filter_sequence
from ldm_filter.types import Context, FilterResult, Gaussian, Prediction, Sources, StateSpace, VonMisesFisher

__all__ = ["LatentModel", "kalman_log_density", "prediction_log_density", "predictive_log_density", "source_log_density"]


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


def prediction_log_density(prediction: Prediction, measurements: Gaussian, detach_target: bool = False) -> Tensor:
    """log P(z_t | z_<t), ``(B, T)``, of predictions in closed form, 0 at steps that do not count; detach_target as above.

    Raises:
        ValueError: a von Mises-Fisher prediction of latents that are not of unit length.
    """
    density, counted = prediction
    target = measurements.mean.detach() if detach_target else measurements.mean
    # Filled before and masked after: a NaN that is only masked after still reaches the gradient.
    target = torch.where(counted.unsqueeze(-1), target, torch.zeros_like(target))
    if isinstance(density, VonMisesFisher):
        _check_unit(target[counted])
        value = directional.log_density(target, density)
    elif isinstance(density, Gaussian):
        value = log_density(target, density)
    else:
        value = source_log_density(target, density)
    return torch.where(counted, value, torch.zeros_like(value))


def source_log_density(z: Tensor, sources: Sources) -> Tensor:
    """sum_d log p_d(z_d - location_d) ``(...)`` of independent sources in standard form.

        gaussian: -x^2/2 - 1/2 log 2 pi     logistic: -2 log(2 cosh(x/2))     laplace: -|x| - log 2

    Raises:
        ValueError: an unknown family.
    """
    x = z - sources.location
    if sources.family == "gaussian":
        return (-0.5 * (x.square() + math.log(2.0 * math.pi))).sum(-1)
    if sources.family == "logistic":
        return (-x - 2.0 * softplus(-x)).sum(-1)
    if sources.family == "laplace":
        return (-x.abs() - math.log(2.0)).sum(-1)
    raise ValueError(f"family is {sources.family!r}, expected 'gaussian', 'logistic' or 'laplace'")


def _plug_in(projected: Gaussian, measurements: Gaussian, observed: Tensor | None) -> Tensor:
    """The density of targets that pass no gradient."""
    counted = torch.ones(measurements.mean.shape[:2], dtype=torch.bool, device=measurements.mean.device) if observed is None else observed
    return prediction_log_density(Prediction(projected, counted), measurements, detach_target=True)


def _check_unit(z: Tensor) -> None:
    if len(z) and not bool(((z.detach().norm(dim=-1) - 1.0).abs() < 1e-3).all()):
        raise ValueError("latents are not of unit length, as a von Mises-Fisher prediction needs them; build the encoder with space='sphere'")
