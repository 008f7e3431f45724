"""The filter and the smoother against statsmodels and filterpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from filterpy.kalman import KalmanFilter
from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother
from torch import Tensor

from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian, StateSpace
from tests.core.problems import constant_ssm, normal, numpy_model, random_measurements, varying_ssm

T, N, M = 25, 4, 3
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def next_step(x: np.ndarray) -> np.ndarray:
    """statsmodels' matrix at t leads from t to t + 1, ours into t; its time is last."""
    return np.moveaxis(np.roll(x, -1, axis=0), 0, -1)


def statsmodels_smoother(ssm: StateSpace, measurements: Gaussian, observed: Tensor | None) -> KalmanSmoother:
    model = numpy_model(ssm, measurements.cov, 0, 1, T)
    endog = measurements.mean[0].numpy().copy()
    if observed is not None:
        endog[~observed[0].numpy()] = np.nan
    smoother = KalmanSmoother(k_endog=M, k_states=N)
    smoother.bind(endog)
    smoother["design"], smoother["obs_intercept"], smoother["obs_cov"] = np.moveaxis(model.C, 0, -1), model.c.T, np.moveaxis(model.R, 0, -1)
    smoother["transition"], smoother["state_intercept"], smoother["state_cov"] = next_step(model.A), next_step(model.a), next_step(model.Q)
    smoother["selection"] = np.eye(N)
    smoother.initialize_known(model.h0, model.P0)
    return smoother.smooth()


@pytest.mark.parametrize("missing", ["nothing", "one channel", "channels and steps"])
@pytest.mark.parametrize("varying", [False, True])
def test_statsmodels(varying: bool, missing: str) -> None:
    ssm = varying_ssm(1, T, N, M) if varying else constant_ssm(N, M)
    measurements = random_measurements(1, T, M, varying=varying)
    observed = None
    if missing != "nothing":
        observed = torch.ones(1, T, M, dtype=torch.bool)
        observed[:, 5:12, 1] = False
    if missing == "channels and steps":
        assert observed is not None
        observed[:, [0, 14, 15, T - 1]] = False
    expected = statsmodels_smoother(ssm, measurements, observed)
    result = filter_sequence(ssm, measurements, observed)
    np.testing.assert_allclose(result.predicted.mean[0].T, expected.predicted_state[:, :-1], **TIGHT)
    np.testing.assert_allclose(result.filtered.mean[0].T, expected.filtered_state, **TIGHT)
    np.testing.assert_allclose(result.filtered.cov[0].permute(1, 2, 0), expected.filtered_state_cov, **TIGHT)
    np.testing.assert_allclose(result.log_likelihood[0], expected.llf_obs, **TIGHT)
    smoothed = smooth_sequence(ssm, result).smoothed
    np.testing.assert_allclose(smoothed.mean[0].T, expected.smoothed_state, **TIGHT)
    np.testing.assert_allclose(smoothed.cov[0].permute(1, 2, 0), expected.smoothed_state_cov, **TIGHT)


def test_filterpy() -> None:
    batch = 3
    ssm, measurements = constant_ssm(N, M), random_measurements(batch, T, M)
    result = filter_sequence(ssm, measurements)
    for b in range(batch):
        kalman = KalmanFilter(dim_x=N, dim_z=M, dim_u=N)
        kalman.F, kalman.Q, kalman.H = (x.numpy() for x in (ssm.transition_matrix, ssm.transition_cov, ssm.observation_matrix))
        kalman.R, kalman.B, kalman.P = measurements.cov.numpy(), np.eye(N), ssm.initial.cov.numpy()
        kalman.x = ssm.initial.mean.numpy()[:, None]
        for t in range(T):
            if t:
                kalman.predict(u=ssm.transition_offset.numpy()[:, None])
            np.testing.assert_allclose(result.predicted.mean[b, t], kalman.x[:, 0], **TIGHT)
            np.testing.assert_allclose(result.predicted.cov[0, t], kalman.P, **TIGHT)
            kalman.update((measurements.mean[b, t] - ssm.observation_offset).numpy()[:, None])
            np.testing.assert_allclose(result.filtered.mean[b, t], kalman.x[:, 0], **TIGHT)
            np.testing.assert_allclose(result.filtered.cov[0, t], kalman.P, **TIGHT)
            np.testing.assert_allclose(result.projected.cov[0, t], kalman.S, **TIGHT)
            np.testing.assert_allclose(result.log_likelihood[b, t], kalman.log_likelihood, **TIGHT)


def test_filterpy_rts() -> None:
    ssm = constant_ssm(N, M)._replace(transition_offset=torch.zeros(N, dtype=torch.float64))
    measurements = Gaussian(normal(5, 1, T, M), random_measurements(1, 1, M).cov)
    result = filter_sequence(ssm, measurements)
    kalman = KalmanFilter(dim_x=N, dim_z=M)
    kalman.F, kalman.Q = ssm.transition_matrix.numpy(), ssm.transition_cov.numpy()
    means, covs, _, _ = kalman.rts_smoother(result.filtered.mean[0].numpy()[..., None], result.filtered.cov[0].numpy())
    smoothed = smooth_sequence(ssm, result).smoothed
    np.testing.assert_allclose(smoothed.mean[0], means[..., 0], **TIGHT)
    np.testing.assert_allclose(smoothed.cov[0], covs, **TIGHT)
