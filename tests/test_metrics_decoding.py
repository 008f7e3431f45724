"""The uncertainty of what is read out of a state, against simulated truth and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from ldm_filter import metrics
from ldm_filter.metrics import covariance_regression, decoded_covariance

ROOT = np.array([[1.0, 0.0], [0.8, 0.5]])
COV = ROOT @ ROOT.T


def draws(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """Errors ~ N(0, COV)."""
    return np.random.default_rng(seed).standard_normal((*shape, 2)) @ ROOT.T


# --- from the filter's covariance


def test_decoded_covariance_covers_a_filter_plus_read_out_error() -> None:
    """y = W h + e with e beside the filter's own error: the decoded ellipse holds 95 %, adding the whole residual overshoots."""
    rng = np.random.default_rng(3)
    w, h = rng.standard_normal((2, 2)), rng.standard_normal((20000, 2)) * 5
    spread = rng.uniform(0.2, 1.5, (20000, 1))
    p = spread[..., None] ** 2 * COV
    estimate = h + spread * draws((20000,), 4)
    y = h @ w.T + 0.3 * rng.standard_normal((20000, 2))
    residual = y - estimate @ w.T
    cov = decoded_covariance(w, p, np.cov(residual.T))
    assert metrics.coverage(estimate @ w.T, cov, y) == pytest.approx(0.95, abs=0.008)
    assert cov.mean(0) == pytest.approx(np.cov(residual.T), abs=1e-10)
    assert metrics.coverage(estimate @ w.T, w @ p @ w.T + np.cov(residual.T), y) > 0.97


def test_decoded_covariance_trusts_an_overstated_filter_in_proportion() -> None:
    """P claims four times the true error: the published cut covers too much, the trusted share covers 95 % at every spread."""
    rng = np.random.default_rng(5)
    spread = rng.uniform(0.2, 1.5, (20000, 1))
    error = spread * draws((20000,), 6)
    claimed = 4 * spread[..., None] ** 2 * COV
    cov = decoded_covariance(np.eye(2), claimed, np.cov(error.T))
    assert metrics.coverage(np.zeros_like(error), claimed, error) > 0.99
    assert metrics.coverage(np.zeros_like(error), cov, error) == pytest.approx(0.95, abs=0.01)
    assert cov.mean(0) == pytest.approx(np.cov(error.T), abs=1e-10)


def test_decoded_covariance_takes_the_largest_share_that_leaves_the_rest_positive() -> None:
    p = np.stack([np.eye(2), 3 * np.eye(2)])
    assert decoded_covariance(np.eye(2), p, 4 * np.eye(2), reference=np.eye(2)) == pytest.approx(p + 3 * np.eye(2))
    assert decoded_covariance(np.eye(2), p, 0.1 * np.eye(2)) == pytest.approx(0.05 * p)
    assert decoded_covariance(np.eye(2), p, np.diag([3.0, 0.5]), reference=np.eye(2)) == pytest.approx(0.5 * p + np.diag([2.5, 0.0]))
    assert decoded_covariance(np.eye(2), 0 * p, 4 * np.eye(2)) == pytest.approx(np.stack([4 * np.eye(2)] * 2))
    with pytest.raises(ValueError, match="residual_cov is not positive definite"):
        decoded_covariance(np.eye(2), p, np.diag([1.0, 0.0]))


# --- from where the target is


def circle(steps: int, seed: int, across: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Places on the unit circle, and errors of std 1 along the tangent and ``across`` along the radius."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, steps)
    place = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    tangent = np.stack([-np.sin(angle), np.cos(angle)], axis=-1)
    return place, tangent * rng.standard_normal((steps, 1)) + across * place * rng.standard_normal((steps, 1))


@pytest.mark.parametrize(("level", "held"), [(0.5, 0.595), (0.8, 0.795), (0.95, 0.917)])
def test_errors_along_a_circle_need_an_ellipse_that_turns(level: float, held: float) -> None:
    """One round ellipse holds P(2 chi2_1 < chi2_2^-1(level)) of them; with the covariance's regression every level is held."""
    assert stats.chi2.cdf(stats.chi2.ppf(level, 2) / 2, 1) == pytest.approx(held, abs=5e-4)
    place, error = circle(30_000, seed=0)
    assert metrics.coverage(0 * error, 0.5 * np.eye(2), error, level) == pytest.approx(held, abs=0.01)
    place, error = circle(8_000, seed=1, across=0.3)
    fit = covariance_regression(place, error)
    place, error = circle(30_000, seed=2, across=0.3)
    assert metrics.coverage(0 * error, fit.apply(place), error, level) == pytest.approx(level, abs=0.015)


def test_covariance_regression_finds_the_true_covariance_whatever_the_units_of_x() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((200, 100, 3)) * [1.0, 50.0, 0.1] + [0.0, 100.0, 3.0]
    base, direction = np.array([[0.5, 0.2], [0.2, 0.4]]), rng.standard_normal((2, 4))

    def true(z: np.ndarray) -> np.ndarray:
        along = np.concatenate([np.ones((*z.shape[:-1], 1)), (z - [0.0, 100.0, 3.0]) / [1.0, 50.0, 0.1]], -1) @ direction.T
        return base + along[..., :, None] * along[..., None, :]

    error = (np.linalg.cholesky(true(x)) @ rng.standard_normal((*x.shape[:-1], 2, 1)))[..., 0]
    fit = covariance_regression(x, error)
    relative = np.linalg.norm(fit.apply(x) - true(x), axis=(-2, -1)) / np.linalg.norm(true(x), axis=(-2, -1))
    assert np.median(relative) < 0.03 and relative.max() < 0.2
    assert fit.log_likelihood == pytest.approx(float(metrics.gaussian_log_likelihood(0 * error, fit.apply(x), error).mean()))
    other = covariance_regression(7.0 * x - 3.0, error)
    assert other.apply(7.0 * x[0] - 3.0) == pytest.approx(fit.apply(x[0]), rel=1e-3, abs=1e-3)


def test_covariance_regression_is_at_a_maximum_of_the_likelihood() -> None:
    place, error = circle(2_000, seed=4, across=0.4)
    fit = covariance_regression(place, error)

    def value(parameters: np.ndarray) -> float:
        base, direction = parameters[:4].reshape(2, 2), parameters[4:].reshape(2, 3)
        moved = fit._replace(base=base + base.T, direction=direction)
        return float(metrics.gaussian_log_likelihood(0 * error, moved.apply(place), error).mean())

    at = np.concatenate([fit.base.ravel() / 2, fit.direction.ravel()])
    assert optimize.approx_fprime(at, value, 1e-6) == pytest.approx(0.0, abs=2e-3)
    assert value(at) > metrics.gaussian_log_likelihood(0 * error, np.cov(error.T), error).mean() + 0.2


def test_covariance_regression_keeps_a_covariance_that_needs_no_turn() -> None:
    """Errors that are as the covariance given beforehand says, with a spread of its own at each step."""
    rng = np.random.default_rng(5)
    x, spread = rng.standard_normal((10_000, 2)), rng.uniform(0.2, 2.0, (10_000, 1))
    cov = spread[..., None] ** 2 * COV
    fit = covariance_regression(x, spread * draws((10_000,), 6), cov)
    near = np.abs(x).max(-1) < 1.5
    assert (fit.apply(x, cov) / cov)[near] == pytest.approx(1.0, abs=0.12)


def test_errors_that_grow_slower_than_the_given_covariance_are_covered_at_every_level_of_it() -> None:
    """Std of the errors is the square root of what is claimed: without the power, quiet steps would be covered far too seldom, loud ones always."""
    rng = np.random.default_rng(8)
    x, spread = rng.standard_normal((20_000, 2)), np.exp(rng.uniform(-1.5, 1.5, (20_000, 1)))
    error, cov = np.sqrt(spread) * draws((20_000,), 9), spread[..., None] ** 2 * COV
    fit = covariance_regression(x[:10_000], error[:10_000], cov[:10_000])
    assert fit.power == pytest.approx(-0.5, abs=0.03)
    found = fit.apply(x[10_000:], cov[10_000:])
    for low in (-1.5, 0.5):
        part = (np.log(spread[10_000:, 0]) >= low) & (np.log(spread[10_000:, 0]) < low + 1)
        assert metrics.coverage(0 * error[10_000:][part], found[part], error[10_000:][part]) == pytest.approx(0.95, abs=0.015)
    assert covariance_regression(x, error, COV).power == 0.0


def test_masked_steps_do_not_matter_and_bad_input_is_named() -> None:
    place, error = circle(500, seed=7, across=0.5)
    fit = covariance_regression(place, error)
    more, dirty = np.concatenate([place, place[:9]]), np.concatenate([error, np.full((9, 2), np.nan)])
    mask = np.arange(509) < 500
    before = more.copy(), dirty.copy()
    assert covariance_regression(more, dirty, np.eye(2), mask).apply(place) == pytest.approx(fit.apply(place), abs=1e-6)
    assert np.array_equal(before[0], more) and np.array_equal(before[1], dirty, equal_nan=True)
    with pytest.raises(ValueError, match="error has 18 entries that are NaN"):
        covariance_regression(more, dirty)
    with pytest.raises(ValueError, match="same leading axes"):
        covariance_regression(place, error[:-1])
    with pytest.raises(ValueError, match=r"19 steps that count.* needs 20"):
        covariance_regression(place[:19], error[:19])
    with pytest.raises(ValueError, match="cov is not positive definite"):
        covariance_regression(place, error, np.zeros((2, 2)))
