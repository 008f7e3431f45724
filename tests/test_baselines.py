"""Classical filters and fillers of series against direct computations by numpy, filterpy, statsmodels and the dense joint Gaussian."""

from __future__ import annotations

import filterpy.kalman
import numpy as np
import pytest
from filterpy.common import Q_continuous_white_noise
from scipy import stats

from ldm_filter import baselines, metrics
from ldm_filter.baselines import series
from ldm_filter.baselines.kinematic import RATIOS

NAN = float("nan")


def tracks(count: int = 4, steps: int = 120, channels: int = 2, seed: int = 0, noise: float = 0.3) -> np.ndarray:
    """Constant-velocity motion (dt 0.5, q 1, r noise^2), as the baseline assumes."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(np.array([[0.5**3 / 3, 0.125], [0.125, 0.5]]))
    state, rows = rng.standard_normal((count, channels, 2)), []
    for _ in range(steps):
        state = state @ np.array([[1.0, 0.0], [0.5, 1.0]]) + rng.standard_normal(state.shape) @ root.T
        rows.append(state[..., 0])
    return np.stack(rows, 1) + noise * rng.standard_normal((count, steps, channels))


def var_data(count: int = 6, steps: int = 200, seed: int = 0) -> np.ndarray:
    """A stable two-channel VAR(2) about (5, -3)."""
    rng = np.random.default_rng(seed)
    one, two = np.array([[1.2, 0.1], [0.0, 0.9]]), np.array([[-0.5, 0.0], [0.2, -0.3]])
    x = np.zeros((count, steps + 50, 2))
    for t in range(2, steps + 50):
        x[:, t] = x[:, t - 1] @ one.T + x[:, t - 2] @ two.T + rng.standard_normal((count, 2)) @ np.array([[1.0, 0.5], [0.0, 0.8]])
    return x[:, 50:] + [5.0, -3.0]


def cut(values: np.ndarray, *gaps: tuple[int, int], channel: int | None = None) -> np.ndarray:
    """A copy with steps [start, stop) hidden, in one channel or all."""
    out = values.copy()
    for start, stop in gaps:
        out[..., start:stop, slice(None) if channel is None else channel] = np.nan
    return out


# --- naive rules


def test_fills_equal_a_loop_and_numpy_interp() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 50, 2))
    values[rng.random(values.shape) < 0.4] = np.nan
    held, line = baselines.hold_last(values), baselines.linear_interpolation(values)
    for b in range(3):
        for c in range(2):
            row = values[b, :, c]
            seen = np.flatnonzero(~np.isnan(row))
            assert line[b, :, c] == pytest.approx(np.interp(np.arange(50), seen, row[seen]))
            last = row[seen[0]]
            for t in range(50):
                last = last if np.isnan(row[t]) else row[t]
                assert held[b, t, c] == last
    assert baselines.hold_last(values[0]) == pytest.approx(held[0])


def test_observed_hides_more() -> None:
    values = np.arange(12.0).reshape(6, 2)
    mask = np.array([True, True, False, False, True, True])
    assert baselines.hold_last(values, mask)[3].tolist() == [2.0, 3.0]
    assert baselines.linear_interpolation(values, mask) == pytest.approx(values)


def test_seasonal_naive_repeats_the_latest_observed_phase() -> None:
    season = np.tile(np.arange(5.0), 4)[:, None]
    assert baselines.seasonal_naive(season, 5, 12).ravel().tolist() == (np.arange(12.0) % 5).tolist()
    season[-5:] = [[10.0], [NAN], [12.0], [13.0], [14.0]]
    assert baselines.seasonal_naive(season, 5, 3).ravel().tolist() == [10.0, 1.0, 12.0]


def test_hold_last_std_is_the_spread_of_a_random_walk() -> None:
    walk = np.cumsum(np.random.default_rng(1).standard_normal((40, 300, 2)) * [1.0, 3.0], axis=1)
    model = baselines.HoldLast().fit(walk[:20])
    ahead = model.forecast(walk[20:, :250], 50)
    assert ahead.std[0] == pytest.approx(np.sqrt(np.arange(1, 51))[:, None] * [1.0, 3.0], rel=0.25)
    assert (ahead.mean == walk[20:, 249:250]).all()
    inside = np.abs(ahead.mean - walk[20:, 250:]) <= 1.96 * ahead.std
    assert inside.mean() == pytest.approx(0.95, abs=0.05)
    filled = model.fill(cut(walk[20:], (100, 110)))
    assert filled.std[:, 100:110] == pytest.approx(np.broadcast_to(ahead.std[:1, :10], (20, 10, 2)))
    assert (filled.std[:, :100] == 0).all()


def test_interpolation_std_is_that_of_a_brownian_bridge() -> None:
    walk = np.cumsum(np.random.default_rng(2).standard_normal((60, 400, 1)), axis=1)
    filled = baselines.LinearInterpolation().fit(walk[:30]).fill(cut(walk[30:], (200, 209), (0, 2)))
    left = np.arange(1, 10)
    assert filled.std[0, 200:209, 0] == pytest.approx(np.sqrt(left * (10 - left) / 10), rel=0.05)
    assert filled.std[0, :2, 0] == pytest.approx([np.sqrt(2), 1.0], rel=0.05)


def test_seasonal_naive_std_grows_with_the_seasons_looked_back() -> None:
    rng = np.random.default_rng(3)
    level = np.cumsum(rng.standard_normal((30, 20, 1)), axis=1).repeat(7, axis=1)
    values = level + np.tile(np.arange(7.0), 20)[:, None]
    std = baselines.SeasonalNaive(7).fit(values).forecast(values, 14).std[0, :, 0]
    assert std == pytest.approx(np.repeat([1.0, np.sqrt(2)], 7), rel=0.1)
    assert np.isfinite(baselines.SeasonalNaive(7).fit(values[0]).forecast(values[0], 200).std).all()


# --- constant velocity


def by_filterpy(model: baselines.ConstantVelocity, row: np.ndarray, channel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Filtered and smoothed means and variances of the position, one channel, through filterpy."""
    kf = filterpy.kalman.KalmanFilter(dim_x=2, dim_z=1)
    kf.x = np.array([model.position_mean_[channel], 0.0])
    kf.P = np.diag([model.position_var_[channel], model.velocity_var_[channel]])
    kf.F, kf.H = np.array([[1.0, model.dt], [0.0, 1.0]]), np.array([[1.0, 0.0]])
    kf.Q = Q_continuous_white_noise(2, model.dt, model.process_noise_[channel])
    kf.R = model.measurement_noise_[channel]
    means, covs = [], []
    for z in row:
        kf.update(None if np.isnan(z) else z)
        means.append(kf.x.copy())
        covs.append(kf.P.copy())
        kf.predict()
    smooth, cov, _, _ = kf.rts_smoother(np.array(means), np.array(covs))
    return np.array(means)[:, 0], np.array(covs)[:, 0, 0], smooth[:, 0], cov[:, 0, 0]


def test_constant_velocity_equals_filterpy() -> None:
    data = tracks()
    model = baselines.ConstantVelocity(0.5).fit(data)
    gappy = cut(cut(data, (0, 3), (40, 55)), (70, 90), channel=1)
    filtered, smoothed = model.filter(gappy, observation_noise=False), model.smooth(gappy, observation_noise=False)
    for b in (0, 3):
        for c in (0, 1):
            mean, cov, smooth, smooth_cov = by_filterpy(model, gappy[b, :, c], c)
            assert filtered.mean[b, :, c] == pytest.approx(mean, rel=1e-9, abs=1e-9)
            assert filtered.std[b, :, c] ** 2 == pytest.approx(cov, rel=1e-9)
            assert smoothed.mean[b, :, c] == pytest.approx(smooth, rel=1e-9, abs=1e-9)
            assert smoothed.std[b, :, c] ** 2 == pytest.approx(smooth_cov, rel=1e-9)


def test_constant_velocity_finds_the_noise_and_is_calibrated() -> None:
    model = baselines.ConstantVelocity(0.5).fit(tracks(30, 150, seed=5))
    assert model.measurement_noise_ == pytest.approx([0.09, 0.09], rel=0.2)
    assert model.process_noise_ == pytest.approx([1.0, 1.0], rel=0.8)  # half a decade is the grid
    data = tracks(30, 150, seed=6)
    smoothed = model.smooth(cut(data, (60, 70)))
    hidden = slice(60, 70)
    assert np.mean(np.abs(smoothed.mean - data)[:, hidden] <= 1.96 * smoothed.std[:, hidden]) == pytest.approx(0.95, abs=0.04)
    ahead = model.forecast(data[:, :140], 10)
    assert ahead.mean.shape == (30, 10, 2)
    assert np.mean(np.abs(ahead.mean - data[:, 140:]) <= 1.96 * ahead.std) == pytest.approx(0.95, abs=0.05)


def test_constant_velocity_noise_is_the_likeliest_of_the_grid() -> None:
    """The profile likelihood of the fit against the plain log-likelihood of filterpy on the same window."""
    data = tracks(1, 70, 1, seed=7)[0]
    model = baselines.ConstantVelocity(0.5).fit(data)

    def log_likelihood(q: float, r: float) -> float:
        kf = filterpy.kalman.KalmanFilter(dim_x=2, dim_z=1)
        kf.x, kf.P = np.array([data[0, 0], 0.0]), 1e6 * np.eye(2)
        kf.F, kf.H, kf.R = np.array([[1.0, 0.5], [0.0, 1.0]]), np.array([[1.0, 0.0]]), r
        kf.Q = Q_continuous_white_noise(2, 0.5, q)
        total = 0.0
        for t, z in enumerate(data[:, 0]):
            kf.update(z)
            total += stats.norm.logpdf(kf.y.item(), 0, np.sqrt(kf.S.item())) if t >= 2 else 0.0
            kf.predict()
        return total

    r, q = model.measurement_noise_[0], model.process_noise_[0]
    best = log_likelihood(q, r)
    assert np.min(np.abs(np.log(q * 0.125 / r) - np.log(RATIOS))) < 1e-9
    for factor in (0.9, 1.1):
        assert log_likelihood(q * factor, r * factor) < best
    for factor in (10**-0.5, 10**0.5):
        assert max(log_likelihood(q * factor * s, r * s) for s in np.geomspace(0.5, 2, 9)) < best


def test_fitting_for_gaps_fills_them_better_when_motion_is_no_constant_velocity() -> None:
    rng = np.random.default_rng(8)
    x = np.zeros((20, 120, 1))
    for t in range(2, 120):  # a turn every 8 steps, which the one-step likelihood takes for strong motion
        x[:, t] = 2 * 0.95 * np.cos(np.pi / 4) * x[:, t - 1] - 0.95**2 * x[:, t - 2] + rng.standard_normal((20, 1))
    train, test = x[:10], x[10:]
    hidden = np.zeros(120, dtype=bool)
    hidden[30:40] = hidden[60:70] = hidden[90:100] = True
    errors = {}
    for gap in (None, 10):
        model = baselines.ConstantVelocity().fit(train, gap=gap)
        filled = model.smooth(test, ~np.broadcast_to(hidden, (10, 120)))
        errors[gap] = metrics.rmse(filled.mean[:, hidden], test[:, hidden])
        if gap:
            covered = np.abs(filled.mean - test)[:, hidden] <= 1.96 * filled.std[:, hidden]
            assert covered.mean() == pytest.approx(0.95, abs=0.05)
    assert errors[10] < 0.7 * errors[None]


def test_constant_velocity_smoother_fills_a_line() -> None:
    line = np.arange(60.0)[:, None] * [1.0, -2.0] + np.random.default_rng(9).normal(0, 0.05, (60, 2))
    filled = baselines.constant_velocity_smoother(cut(line, (20, 35)))
    assert filled.mean[20:35] == pytest.approx(np.arange(20.0, 35)[:, None] * [1.0, -2.0], abs=0.5)
    assert np.isfinite(filled.std).all()
    same = baselines.constant_velocity_smoother(cut(line, (20, 35)), train=cut(line, (20, 35)))
    assert same.mean == pytest.approx(filled.mean)


# --- what comes in


@pytest.mark.parametrize("model", [baselines.HoldLast(), baselines.SeasonalNaive(4), baselines.ConstantVelocity(), baselines.VARKalman(2)])
def test_forecasts_before_fit_and_on_other_channels_are_refused(model) -> None:
    data = var_data(2, 60)
    with pytest.raises(ValueError, match="not fitted"):
        model.forecast(data, 3)
    model.fit(data)
    with pytest.raises(ValueError, match="fitted on 2"):
        model.forecast(data[..., :1], 3)
    with pytest.raises(ValueError, match="horizon"):
        model.forecast(data, 0)
    ahead = model.forecast(data[0], 5)
    assert ahead.mean.shape == ahead.std.shape == (5, 2)
    assert np.isfinite(ahead.mean).all()
    assert (ahead.std > 0).all()


@pytest.mark.parametrize("model", [baselines.HoldLast(), baselines.LinearInterpolation(), baselines.ConstantVelocity(), baselines.VARKalman(2)])
def test_every_gap_is_filled_and_inputs_stay_untouched(model) -> None:
    data = var_data(3, 60)
    gappy = cut(cut(data, (0, 5), (20, 30), (55, 60)), (40, 50), channel=0)
    before = gappy.copy()
    model.fit(data)
    filled = model.smooth(gappy) if hasattr(model, "smooth") else model.fill(gappy)
    assert filled.mean.shape == filled.std.shape == data.shape
    assert np.isfinite(filled.mean).all()
    assert (filled.std[np.isnan(gappy)] > 0).all()
    one = model.smooth(gappy[1]) if hasattr(model, "smooth") else model.fill(gappy[1])
    assert one.mean == pytest.approx(filled.mean[1], abs=1e-6)
    assert np.array_equal(gappy, before, equal_nan=True)


def test_bad_series_are_named() -> None:
    good = var_data(1, 30)[0]
    for bad, error, match in (
        (good[:, 0], ValueError, r"shape \(30,\)"),
        (np.full((30, 2), np.inf), ValueError, "infinite"),
        (np.array([["a"], ["b"]]), TypeError, "real numbers"),
        (np.full((30, 2), NAN), ValueError, "no observed entry in channel 0 of series 0"),
        (np.empty((0, 2)), ValueError, "shape"),
    ):
        with pytest.raises(error, match=match):
            baselines.hold_last(bad)
    with pytest.raises(TypeError, match="boolean"):
        baselines.hold_last(good, np.ones((30, 2)))
    with pytest.raises(ValueError, match="observed has shape"):
        baselines.hold_last(good, np.ones(29, bool))
    with pytest.raises(ValueError, match="period"):
        baselines.seasonal_naive(good, 31, 3)
    with pytest.raises(ValueError, match="phase"):
        baselines.seasonal_naive(cut(good, (0, 2), (28, 30)), 28, 3)


def test_bad_fits_are_named() -> None:
    good = var_data(1, 30)[0]
    with pytest.raises(ValueError, match="dt must be positive"):
        baselines.ConstantVelocity(0.0).fit(good)
    with pytest.raises(ValueError, match=r"constant.*\[1\]"):
        baselines.ConstantVelocity().fit(good * [1.0, 0.0])
    with pytest.raises(ValueError, match="gap must lie"):
        baselines.ConstantVelocity().fit(good, gap=11)
    with pytest.raises(ValueError, match="order must"):
        baselines.VARKalman(0).fit(good)
    with pytest.raises(ValueError, match="lower the order"):
        baselines.VARKalman(9).fit(good)
    with pytest.raises(ValueError, match="needs at least 31"):
        baselines.VARKalman(30).fit(good)
    with pytest.raises(ValueError, match="only forecasts"):
        baselines.SeasonalNaive(3).fit(good).fill(good)


def test_a_run_in_parts_equals_a_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = cut(tracks(5, 30), (10, 15), channel=1)
    model = baselines.ConstantVelocity(0.5).fit(data)
    whole = model.smooth(data)
    monkeypatch.setattr(series, "MEMORY", 1)
    parts = model.smooth(data)
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.std == pytest.approx(whole.std)
