"""The fitted latent filter in the hands of other libraries."""

from __future__ import annotations

import numpy as np
import torch
from filterpy.kalman import KalmanFilter

from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.types import StateSpace

__all__ = ["as_filterpy"]


@torch.no_grad()
def as_filterpy(model: LatentFilter) -> KalmanFilter:
    """A ``filterpy.kalman.KalmanFilter`` with the model's matrices, in float64.

    The filter starts from the *prediction* for the first row: call ``update(z)`` first, then ``predict()`` and ``update(z)`` in turn.

    Raises:
        ValueError: the model has an offset or inputs at the observation, which filterpy does not have a place for, or is not linear.
    """
    ssm = model.dynamics()
    if not isinstance(ssm, StateSpace):
        raise ValueError(
            'the model is not linear, or its noise is not fixed, and filterpy\'s KalmanFilter holds one linear model; fit with dynamics="linear" and '
            'noise="constant" or "input"'
        )
    n, m = ssm.transition_matrix.shape[0], ssm.observation_matrix.shape[0]
    if bool(ssm.transition_offset.abs().max() > 1e-6) or bool(ssm.observation_offset.abs().max() > 1e-6):
        raise ValueError('the model has offsets, which filterpy has no place for; fit with observation="learned", which centres the state')
    filtering = KalmanFilter(dim_x=n, dim_z=m, dim_u=model.dynamics.input_dim)
    filtering.B = _input_matrix(model)
    filtering.x = _column(ssm.initial.mean)
    filtering.P, filtering.F, filtering.Q = (_matrix(x) for x in (ssm.initial.cov, ssm.transition_matrix, ssm.transition_cov))
    filtering.H = _matrix(ssm.observation_matrix)
    encoder = model.encoder
    nothing = encoder.center.expand(1, 1, *encoder.event_shape)
    filtering.R = _matrix(encoder(nothing, torch.ones_like(nothing, dtype=torch.bool)).cov[0, 0])
    return filtering


def _input_matrix(model: LatentFilter) -> np.ndarray | None:
    """B for inputs in their own units, None without any."""
    dynamics = model.dynamics
    if not dynamics.input_dim:
        return None
    assert isinstance(dynamics, AffineDynamics)
    if bool(dynamics.feedthrough.abs().max() > 1e-6) or bool((dynamics.input_mean / dynamics.input_scale).abs().max() > 1e-6):
        raise ValueError(
            "the model has inputs that move the observation or have a mean, which filterpy has no place for; pass their effect as an offset"
        )
    return _matrix(dynamics.steps(None).held @ (dynamics.input_matrix / dynamics.input_scale).double())


def _matrix(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy().copy()


def _column(x: torch.Tensor) -> np.ndarray:
    return _matrix(x)[:, None]
