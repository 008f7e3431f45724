"""Metrics against closed forms, scipy and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ldm_filter import metrics

RNG = np.random.default_rng(0)
ROOT = np.array([[1.0, 0.0], [0.8, 0.5]])
COV = ROOT @ ROOT.T


def draws(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """Errors ~ N(0, COV)."""
    return np.random.default_rng(seed).standard_normal((*shape, 2)) @ ROOT.T


# --- accuracy


def test_mse_counts_entries_and_takes_tensors_with_gradient() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = np.zeros((2, 2))
    assert metrics.mse(x, y) == pytest.approx(7.5)
    assert metrics.rmse(x, y, np.array([True, False])) == pytest.approx(np.sqrt(2.5))
    assert metrics.mse(x, y, np.array([[False, False], [False, True]])) == pytest.approx(16.0)


def test_db_inverts() -> None:
    assert 10 ** (metrics.db(0.37) / 10) == pytest.approx(0.37)
    with pytest.raises(ValueError, match="positive"):
        metrics.db(0.0)


def test_r2_is_the_mean_of_the_dimensions_not_the_pooled_one() -> None:
    truth = RNG.standard_normal((5, 40, 2)) * [1.0, 100.0]
    estimate = truth + RNG.standard_normal(truth.shape) * [1.0, 1.0]
    flat_x, flat_y = estimate.reshape(-1, 2), truth.reshape(-1, 2)
    want = 1 - ((flat_y - flat_x) ** 2).sum(0) / ((flat_y - flat_y.mean(0)) ** 2).sum(0)
    assert metrics.r2(estimate, truth, per_dim=True) == pytest.approx(want)
    assert metrics.r2(estimate, truth) == pytest.approx(want.mean())
    assert want[0] < 0.5 < 0.99 < want[1]


def test_r2_of_the_mean_is_zero_and_masked_entries_do_not_matter() -> None:
    truth = RNG.standard_normal(30)
    assert metrics.r2(np.full(30, truth.mean()), truth) == pytest.approx(0.0)
    dirty, mask = np.append(truth, np.nan), np.append(np.ones(30, bool), False)
    noisy = dirty + 0.1
    assert metrics.r2(noisy, dirty, mask) == pytest.approx(metrics.r2(truth + 0.1, truth))


def test_r2_refuses_a_constant_target() -> None:
    with pytest.raises(ValueError, match=r"constant in target dimensions \[1\]"):
        metrics.r2(np.zeros((9, 2)), np.stack([np.arange(9.0), np.full(9, 0.1)], 1))


def test_affine_fit_recovers_map_and_residual_covariance() -> None:
    w, b = RNG.standard_normal((2, 3)), np.array([4.0, -1.0])
    x = RNG.standard_normal((50, 400, 3))
    y = x @ w.T + b + draws((50, 400))
    fit = metrics.affine_fit(x, y)
    assert fit.matrix == pytest.approx(w, abs=0.03)
    assert fit.offset == pytest.approx(b, abs=0.03)
    assert fit.residual_cov == pytest.approx(COV, abs=0.03)
    line = stats.linregress(x[..., 0].ravel(), y[..., 0].ravel())
    single = metrics.affine_fit(x[..., :1], y[..., :1])
    assert (single.matrix.item(), single.offset.item()) == pytest.approx((line.slope, line.intercept))


def test_affine_r2_is_one_for_an_affine_image_and_low_for_a_nonlinear_one() -> None:
    z = RNG.standard_normal((600, 2))
    x = z @ RNG.standard_normal((2, 2)).T + 3.0
    assert metrics.affine_r2(x[:300], z[:300], x[300:], z[300:]) == pytest.approx(1.0)
    assert metrics.affine_r2(np.abs(z[:300]), z[:300], np.abs(z[300:]), z[300:]) < 0.05
    assert np.shape(metrics.affine_r2(x[:300], z[:300], x[300:], z[300:], per_dim=True)) == (2,)


def test_affine_fit_leaves_masked_steps_out_and_needs_enough_of_them() -> None:
    x = np.append(np.arange(6.0), np.nan)[:, None]
    fit = metrics.affine_fit(x, 2 * x + 1, np.isfinite(x[:, 0]))
    assert fit.apply([[10.0]]).item() == pytest.approx(21.0)
    with pytest.raises(ValueError, match="NaN"):
        metrics.affine_fit(x, 2 * x + 1)
    with pytest.raises(ValueError, match="at least 3"):
        metrics.affine_fit(x[:2], x[:2])


def test_noise_corr_uses_the_mean_variance() -> None:
    v = RNG.exponential(0.3, (8, 30))
    assert metrics.noise_corr(v[..., None, None] * COV + 0.1 * np.eye(2), v) == pytest.approx(1.0)
    noisy = v + RNG.exponential(0.3, v.shape)
    want = np.corrcoef(noisy.ravel(), v.ravel())[0, 1]
    assert metrics.noise_corr(noisy[..., None, None] * np.eye(3), v) == pytest.approx(want)
    assert metrics.noise_corr(np.exp(v)[..., None, None] * np.eye(3), v, rank=True) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="constant"):
        metrics.noise_corr(np.broadcast_to(np.eye(2), (8, 30, 2, 2)), v)


# --- calibration


def test_log_likelihood_and_crps_against_scipy_and_the_integral() -> None:
    mean, truth = draws((4, 5), 5), draws((4, 5), 6)
    want = [[stats.multivariate_normal(m, COV).logpdf(y) for m, y in zip(*rows, strict=True)] for rows in zip(mean, truth, strict=True)]
    assert metrics.gaussian_log_likelihood(mean, COV, truth) == pytest.approx(np.array(want))
    assert metrics.nll(mean, COV, truth) == pytest.approx(-np.mean(want))

    def integrand(x: float) -> float:
        return float((stats.norm.cdf(x, 0.5, 2.0) - (x >= 1.7)) ** 2)

    integral = integrate.quad(integrand, -20, 1.7)[0] + integrate.quad(integrand, 1.7, 20)[0]
    assert metrics.crps_normal([0.5], [2.0], [1.7]) == pytest.approx([integral])


def test_a_masked_entry_is_marginalised_out() -> None:
    mean, truth = draws((6,), 7), draws((6,), 8)
    truth[:, 1] = np.nan
    mask = np.tile([True, False], (6, 1))
    mask[5] = False
    want = stats.norm(mean[:5, 0], np.sqrt(COV[0, 0])).logpdf(truth[:5, 0])
    got = metrics.gaussian_log_likelihood(mean, COV, truth, mask)
    assert got[:5] == pytest.approx(want)
    assert np.isnan(got[5])
    squared = (truth[:5, 0] - mean[:5, 0]) ** 2 / COV[0, 0]
    assert metrics.nis(mean, COV, truth, mask, normalised=True)[:5] == pytest.approx(squared)
    assert metrics.nees(mean, COV, truth, mask)[:5] == pytest.approx(squared)
    assert np.isnan(metrics.crps_normal(mean, np.ones(2), truth, mask)[:, 1]).all()


def test_calibrated_errors_pass_every_check() -> None:
    truth = draws((100, 50), 9)
    mean = np.zeros_like(truth)
    values = metrics.nees(mean, COV, truth)
    low, high = metrics.chi2_bounds(2, values.size, 0.999)
    assert low < values.mean() < high
    assert stats.kstest(values.ravel(), stats.chi2(2).cdf).pvalue > 0.01
    row = metrics.scores(mean, COV, truth)
    assert row["nees"] == pytest.approx(values.mean() / 2)
    for level in (0.5, 0.8, 0.95):
        assert row[f"coverage{round(100 * level)}"] == pytest.approx(level, abs=0.02)
        assert metrics.coverage(mean, COV, truth, level, per_dim=True) == pytest.approx([level] * 2, abs=0.02)
    ranks = metrics.pit(mean, np.sqrt(np.diag(COV)), truth)
    assert stats.kstest(ranks[..., 0].ravel(), "uniform").pvalue > 0.01
    # closed forms: E CRPS of the true N(0, s^2) is s / sqrt(pi); E nll is the entropy
    assert row["crps"] == pytest.approx(np.sqrt(np.diag(COV)).mean() / np.sqrt(np.pi), rel=0.03)
    assert row["nll"] == pytest.approx(stats.multivariate_normal(cov=COV).entropy(), abs=0.03)


def test_the_distance_of_the_pit_is_that_of_kolmogorov_and_smirnov() -> None:
    truth = draws((40, 50), 9)
    std, mask = np.sqrt(np.diag(COV)) * [1.0, 0.5], np.random.default_rng(0).random((40, 50)) < 0.7
    found = [stats.kstest(truth[mask][:, d] / std[d], "norm").statistic for d in range(2)]
    assert metrics.pit_distance(np.zeros_like(truth), std, truth, mask) == pytest.approx(max(found)) and found[1] > 2 * found[0]
    first = mask[..., None] & [True, False]
    assert metrics.pit_distance(np.zeros_like(truth), std, truth, first) == pytest.approx(found[0])
    assert metrics.scores(np.zeros_like(truth), np.diag(std**2), truth, mask)["pit_distance"] == pytest.approx(max(found))
    assert metrics.pit_distance([0.0, 0.0], [1.0, 1.0], [9.0, 9.0]) == pytest.approx(1.0)


def test_overconfidence_is_seen() -> None:
    truth = draws((2000,), 10)
    row = metrics.scores(np.zeros_like(truth), COV / 4, truth)
    assert row["nees"] == pytest.approx(4.0, rel=0.1)
    assert row["coverage95"] == pytest.approx(stats.chi2(2).cdf(stats.chi2(2).ppf(0.95) / 4), abs=0.03)


def test_chi2_bounds_hold_their_level() -> None:
    low, high = metrics.chi2_bounds(3, 20, 0.9, normalised=True)
    means = np.random.default_rng(11).chisquare(3, (20000, 20)).mean(1) / 3
    assert ((means > low) & (means < high)).mean() == pytest.approx(0.9, abs=0.01)
    with pytest.raises(ValueError, match="level"):
        metrics.chi2_bounds(3, 20, 95)
    with pytest.raises(ValueError, match="at least 1"):
        metrics.chi2_bounds(0, 20)


# --- residuals


def test_autocorrelation_of_an_ar1_and_of_a_sine() -> None:
    rng = np.random.default_rng(12)
    x = np.zeros((50, 2000))
    for t in range(1, 2000):
        x[:, t] = 0.8 * x[:, t - 1] + rng.standard_normal(50)
    both = np.stack([x, np.broadcast_to(np.sin(np.arange(2000) * 2 * np.pi / 20), x.shape)], -1) + 5.0
    got = metrics.autocorrelation(both, 10)
    assert got[:, 0] == pytest.approx(0.8 ** np.arange(11), abs=0.02)
    assert got[[0, 5, 10], 1] == pytest.approx([1.0, 0.0, -1.0], abs=0.01)


def test_autocorrelation_with_gaps_equals_the_pairs_that_count() -> None:
    x = RNG.standard_normal(40)
    mask = RNG.random(40) > 0.3
    centred = x - x[mask].mean()
    a, b = centred[:-3][mask[:-3] & mask[3:]], centred[3:][mask[:-3] & mask[3:]]
    got = metrics.autocorrelation(np.where(mask, x, np.nan), 3, mask)
    assert got[3, 0] == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def test_whiteness_accepts_white_and_catches_coloured_innovations() -> None:
    noise = draws((20, 300), 13)
    zero = np.zeros_like(noise)
    white = metrics.whiteness(zero, COV, noise, 20, level=0.999)
    assert (np.abs(white.autocorrelation) < white.bound).all()
    assert white.bound[0] == pytest.approx(stats.norm.ppf(0.9995) / np.sqrt(20 * 299 * 2))
    coloured = metrics.whiteness(zero, COV, np.diff(noise, axis=1, prepend=0.0), 5)
    assert coloured.autocorrelation[0] == pytest.approx(-0.5, abs=0.03)
    assert abs(coloured.autocorrelation[0]) > 5 * coloured.bound[0]


def test_whiteness_bound_is_the_spread_under_the_null() -> None:
    rng = np.random.default_rng(14)
    zero = np.zeros((100, 2))
    runs = [metrics.whiteness(zero, COV, rng.standard_normal((100, 2)) @ ROOT.T, 1) for _ in range(400)]
    inside = np.mean([abs(run.autocorrelation[0]) < run.bound[0] for run in runs])
    assert inside == pytest.approx(0.95, abs=0.035)


# --- what comes in


@pytest.mark.parametrize("name", ["mse", "r2", "crps_normal", "nees", "coverage", "pit", "gaussian_log_likelihood"])
def test_nan_that_counts_is_an_error(name: str) -> None:
    good, bad = RNG.standard_normal((5, 2)), RNG.standard_normal((5, 2))
    bad[3, 1] = np.nan
    middle = {"crps_normal": [np.ones((5, 2))], "pit": [np.ones((5, 2))], "mse": [], "r2": []}.get(name, [np.eye(2)])
    with pytest.raises(ValueError, match=r"1 entries.*first at \(3, 1\)"):
        getattr(metrics, name)(good, *middle, bad)
    with pytest.raises(ValueError, match=r"shape \(5, 2\).*\(4, 2\)"):
        getattr(metrics, name)(good, *middle, good[:4])


def test_bad_masks_covariances_and_kinds_are_named() -> None:
    x = RNG.standard_normal((5, 2))
    with pytest.raises(TypeError, match="boolean"):
        metrics.mse(x, x, np.ones(5))
    with pytest.raises(ValueError, match="mask has shape"):
        metrics.mse(x, x, np.ones(4, bool))
    with pytest.raises(ValueError, match="nothing is left"):
        metrics.mse(x, x, np.zeros(5, bool))
    with pytest.raises(ValueError, match="cov has shape"):
        metrics.nees(x, np.eye(3), x)
    with pytest.raises(ValueError, match="not positive definite"):
        metrics.nees(x, np.diag([1.0, -1.0]), x)
    with pytest.raises(ValueError, match="std must be positive"):
        metrics.crps_normal(x, np.zeros(2), x)
    with pytest.raises(TypeError, match="real numbers"):
        metrics.mse(np.array(["a"]), np.array(["b"]))
    with pytest.raises(ValueError, match="lags"):
        metrics.autocorrelation(x, 5)
    with pytest.raises(ValueError, match="level"):
        metrics.coverage(x, np.eye(2), x, 95)
    with pytest.raises(ValueError, match=r"dimensions \[1\] without"):
        metrics.coverage(x, np.eye(2), x, mask=np.tile([True, False], (5, 1)), per_dim=True)


def test_inputs_stay_untouched() -> None:
    mean, truth, cov = draws((3, 4), 15), draws((3, 4), 16), np.tile(COV, (3, 4, 1, 1))
    before = [a.copy() for a in (mean, truth, cov)]
    mask = RNG.random((3, 4, 2)) > 0.3
    metrics.scores(mean, cov, truth, mask)
    metrics.whiteness(mean, cov, truth, 2, mask)
    assert all(np.array_equal(a, b) for a, b in zip(before, (mean, truth, cov), strict=True))
