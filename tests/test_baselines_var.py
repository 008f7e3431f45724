"""The vector autoregression as a Kalman filter against statsmodels, least squares and the dense joint Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.tsa.api import VAR

from ldm_filter import baselines, metrics
from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian
from tests.test_baselines import NAN, cut, var_data


def test_var_coefficients_equal_statsmodels() -> None:
    data = var_data(1, 600)[0]
    model = baselines.VARKalman(2, ridge=0.0).fit(data)
    want = VAR(data).fit(2, trend="c")
    assert model.coefficients_ == pytest.approx(want.coefs, abs=1e-9)
    assert model.innovation_cov_ == pytest.approx(np.asarray(want.sigma_u_mle), abs=1e-9)


def test_var_forecast_equals_statsmodels() -> None:
    data = var_data(1, 600)[0]
    want = VAR(data).fit(2, trend="c")
    mean, low, high = want.forecast_interval(data[-2:], 5, alpha=0.05)
    got = baselines.VARKalman(2, ridge=0.0).fit(data).forecast(data, 5)
    assert got.mean == pytest.approx(mean, abs=1e-4)
    # statsmodels divides the residuals' squares by the degrees of freedom
    assert got.std == pytest.approx((high - low) / 2 / stats.norm.ppf(0.975) * np.sqrt(want.df_resid / want.nobs), rel=1e-4)


def test_var_smoother_is_the_conditional_gaussian() -> None:
    """The gap given all other values, from the dense joint covariance of the whole series."""
    model = baselines.VARKalman(2).fit(var_data())
    data = var_data(1, 40, seed=3)[0]
    gappy = cut(cut(data, (12, 18)), (25, 31), channel=1)
    got = model.smooth(gappy)
    mean, std = dense(model, gappy)
    hidden = np.isnan(gappy)
    assert got.mean[hidden] == pytest.approx(mean[hidden], abs=1e-3)
    assert got.std[hidden] == pytest.approx(std[hidden], rel=1e-3)
    assert got.mean[~hidden] == pytest.approx(data[~hidden])


def dense(model: baselines.VARKalman, gappy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Conditional mean and std of a (time, channel) series under the model, without any recursion through the data."""
    a, offset, q = (x.numpy() for x in model.ssm_[:3])
    h, p = (x.numpy() for x in model.ssm_.initial)
    steps, channels = gappy.shape
    means, covs = [h], [p]
    for _ in range(steps - 1):
        means.append(a @ means[-1] + offset)
        covs.append(a @ covs[-1] @ a.T + q)
    joint = np.zeros((steps, channels, steps, channels))
    for s in range(steps):
        power = covs[s]
        for t in range(s, steps):
            joint[t, :, s] = power[:channels, :channels]
            joint[s, :, t] = power[:channels, :channels].T
            power = a @ power
    full = joint.reshape(steps * channels, -1)
    prior = np.stack(means)[:, :channels].ravel()
    x = ((gappy - model.mean_) / model.scale_).ravel()
    seen = ~np.isnan(x)
    gain = np.linalg.solve(full[np.ix_(seen, seen)] + 1e-6 * np.eye(seen.sum()), full[np.ix_(seen, ~seen)]).T
    mean, variance = x.copy(), np.full(x.shape, 1e-6)
    mean[~seen] = prior[~seen] + gain @ (x - prior)[seen]
    variance[~seen] += np.diag(full[np.ix_(~seen, ~seen)] - gain @ full[np.ix_(seen, ~seen)])
    return mean.reshape(gappy.shape) * model.scale_ + model.mean_, np.sqrt(variance).reshape(gappy.shape) * model.scale_


def test_var_neighbourhoods_equal_the_whole_run() -> None:
    model = baselines.VARKalman(3).fit(var_data())
    data = var_data(3, 120, seed=4)
    data[np.random.default_rng(5).random(data.shape) < 0.05] = np.nan
    data = cut(data, (0, 4), (50, 60), (117, 120))
    mask = torch.from_numpy(~np.isnan(data))
    z = torch.from_numpy(np.nan_to_num((data - model.mean_) / model.scale_))
    result = filter_sequence(model.ssm_, Gaussian(z, 1e-6 * torch.eye(2, dtype=z.dtype)), mask)
    for got, want in ((model.filter(data), result.filtered), (model.smooth(data), smooth_sequence(model.ssm_, result).smoothed)):
        hidden = ~mask.numpy()
        assert ((got.mean - model.mean_) / model.scale_)[hidden] == pytest.approx(want.mean[..., :2].numpy()[hidden], abs=1e-3)
        variance = want.cov.diagonal(dim1=-2, dim2=-1)[..., :2].numpy()[hidden] + 1e-6
        assert (got.std / model.scale_)[hidden] == pytest.approx(np.sqrt(variance), rel=1e-3)


def test_var_beats_interpolation_on_its_own_data_and_is_calibrated() -> None:
    data = var_data(40, 100, seed=6)
    gappy, hidden = cut(data, (30, 40), (70, 80)), np.r_[30:40, 70:80]
    filled = baselines.VARKalman(2).fit(var_data(20, 200, seed=7)).smooth(gappy)
    line = baselines.linear_interpolation(gappy)
    assert metrics.rmse(filled.mean[:, hidden], data[:, hidden]) < 0.9 * metrics.rmse(line[:, hidden], data[:, hidden])
    assert np.mean(np.abs(filled.mean - data)[:, hidden] <= 1.96 * filled.std[:, hidden]) == pytest.approx(0.95, abs=0.03)


def test_var_is_kept_from_exploding_and_skips_gaps_in_training() -> None:
    growing = np.exp(0.1 * np.arange(80.0))[:, None] * np.random.default_rng(10).normal(1, 0.01, (80, 1))
    model = baselines.VARKalman(2).fit(growing)
    assert np.abs(np.linalg.eigvals(model.ssm_.transition_matrix.numpy())).max() <= 1 + 1e-9
    data = var_data()
    padded = np.concatenate([data, np.full((6, 30, 2), NAN)], axis=1)
    assert baselines.VARKalman(2).fit(padded).coefficients_ == pytest.approx(baselines.VARKalman(2).fit(data).coefficients_)


def test_adapted_to_its_own_data_it_stays_and_to_others_it_moves_between_the_two() -> None:
    first, second = var_data(1, 600)[0], 0.5 * var_data(1, 400, seed=5)[0][::-1].copy()
    model = baselines.VARKalman(2).fit(first)
    kept = model.coefficients_.copy()
    assert model.adapted(first, 100.0).coefficients_ == pytest.approx(kept, abs=1e-5)
    other = baselines.VARKalman(2).fit(second)
    assert model.adapted(second, 1e-6).coefficients_ == pytest.approx(other.coefficients_, abs=1e-4)
    assert model.adapted(second, 1e-6).innovation_cov_ == pytest.approx(other.innovation_cov_, rel=1e-3)
    assert model.adapted(second, 1e9).coefficients_ == pytest.approx(kept, abs=1e-4)
    assert model.coefficients_ == pytest.approx(kept, abs=0)
    with pytest.raises(ValueError, match="weight is 0"):
        model.adapted(second, 0)
