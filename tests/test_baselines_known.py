"""Filters on known state equations against the exact linear filter, each other and the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm_filter import Gaussian, StateSpace, filter_sequence
from ldm_filter.baselines import EKF, UKF, ParticleFilter, StateEquations
from ldm_filter.types import FilterResult

A, C = np.array([[1.0, 0.1], [-0.1, 0.95]]), np.array([[1.0, 0.0], [0.5, 1.0]])
Q, R = np.diag([0.01, 0.02]), np.array([[0.1, 0.02], [0.02, 0.2]])
LINEAR = StateEquations(lambda x: x @ A.T, lambda x: x @ C.T, Q, R, np.zeros(2), np.eye(2))


def pendulum(x: np.ndarray) -> np.ndarray:
    """A frictionless pendulum, semi-implicit Euler, 0.05 s."""
    rate = x[..., 1] - 0.05 * 9.81 * np.sin(x[..., 0])
    return np.stack([x[..., 0] + 0.05 * rate, rate], axis=-1)


SWING = StateEquations(pendulum, lambda x: np.sin(x[..., :1]), np.diag([1e-5, 1e-3]), [[0.04]], [1.0, 0.0], 0.1 * np.eye(2))


def linear_data() -> np.ndarray:
    rng = np.random.default_rng(0)
    x, rows = rng.standard_normal((3, 2)), []
    for _ in range(40):
        x = x @ A.T + rng.multivariate_normal(np.zeros(2), Q, 3)
        rows.append(x @ C.T + rng.multivariate_normal(np.zeros(2), R, 3))
    z = np.stack(rows, 1)
    z[0, 5:8], z[1, 10:14, 1] = np.nan, np.nan
    return z


def exact(z: np.ndarray) -> FilterResult:
    a, q, c, r = (torch.from_numpy(part) for part in (A, Q, C, R))
    zero = torch.zeros(2, dtype=torch.float64)
    ssm = StateSpace(a, zero, q, c, zero, Gaussian(zero, torch.eye(2, dtype=torch.float64)))
    return filter_sequence(ssm, Gaussian(torch.from_numpy(np.nan_to_num(z)), r), torch.from_numpy(~np.isnan(z)))


def leaves(result: FilterResult) -> list[np.ndarray]:
    parts = [*result.predicted, *result.filtered, *result.projected, result.log_likelihood]
    return [np.broadcast_to(part.numpy(), (3, *part.shape[1:])) for part in parts]


@pytest.mark.parametrize(("method", "close"), [(EKF(LINEAR), 1e-8), (UKF(LINEAR), 1e-10)])
def test_on_a_linear_model_they_are_the_exact_filter_with_gaps_too(method: EKF | UKF, close: float) -> None:
    z = linear_data()
    for mine, theirs in zip(leaves(method.filter(z)), leaves(exact(z)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=close)


def test_particles_approach_the_exact_filter() -> None:
    z = linear_data()
    found, wanted = ParticleFilter(LINEAR, 20_000).filter(z), exact(z)
    assert float((found.filtered.mean - wanted.filtered.mean).abs().max()) < 0.05
    assert float((found.filtered.cov - wanted.filtered.cov).abs().max()) < 0.02
    assert float(found.log_likelihood.sum()) == pytest.approx(float(wanted.log_likelihood.sum()), abs=2.0)
    again = ParticleFilter(LINEAR, 20_000).filter(z[:1])
    assert torch.equal(again.filtered.mean, found.filtered.mean[:1])


def test_they_track_a_swinging_pendulum_and_say_how_well() -> None:
    rng = np.random.default_rng(1)
    x, states = rng.multivariate_normal(SWING.initial_mean, SWING.initial_cov, 6), []
    for _ in range(80):
        states.append(x)
        x = pendulum(x) + rng.multivariate_normal(np.zeros(2), SWING.transition_cov, 6)
    truth = np.stack(states, 1)
    z = np.sin(truth[..., :1]) + rng.normal(0, 0.2, (6, 80, 1))
    for method in (EKF(SWING), UKF(SWING), ParticleFilter(SWING, 2000)):
        belief = method.state(z)
        error = truth - belief.mean.numpy()
        nees = np.einsum("bti,btij,btj->bt", error, np.linalg.inv(belief.cov.numpy()), error)[:, 10:].mean() / 2
        assert np.sqrt(np.square(error[:, 10:, 0]).mean()) < 0.12, type(method).__name__  # a frame alone says 0.2 or worse
        assert 0.5 < nees < 2.0, (type(method).__name__, nees)


def test_slopes_by_differences_are_those_given_and_forecasts_are_steps_without_data() -> None:
    def tangent(x: np.ndarray) -> np.ndarray:
        slope = -0.05 * 9.81 * np.cos(x[0])
        return np.array([[1 + 0.05 * slope, 0.05], [slope, 1.0]])

    given = StateEquations(pendulum, SWING.observation, SWING.transition_cov, SWING.measurement_cov, SWING.initial_mean, SWING.initial_cov, tangent)
    z = np.sin(np.linspace(1, 2, 30))[:, None]
    np.testing.assert_allclose(EKF(given).one_step(z).mean, EKF(SWING).one_step(z).mean, atol=1e-7)
    for method in (EKF(SWING), UKF(SWING), ParticleFilter(SWING, 500)):
        ahead, longer = method.forecast(z, 4), method.one_step(np.concatenate([z, np.full((4, 1), np.nan)]))
        np.testing.assert_array_equal(ahead.mean, longer.mean[-4:])
        np.testing.assert_array_equal(method.fill(z).mean, method.one_step(z).mean)


def test_equations_that_do_not_fit_are_named() -> None:
    ok = {"transition": lambda x: x, "observation": lambda x: x, "transition_cov": np.eye(2), "measurement_cov": np.eye(2)}
    ok |= {"initial_mean": np.zeros(2), "initial_cov": np.eye(2)}
    for change, message in (
        ({"transition_cov": np.eye(3)}, r"transition_cov has shape \(3, 3\), expected \(2, 2\)"),
        ({"initial_cov": np.full((2, 2), np.nan)}, "initial_cov holds NaN"),
        ({"observation": lambda x: x[..., 0]}, r"observation gives shape \(3,\) for states of shape \(3, 2\), expected \(3, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            StateEquations(**(ok | change))
    with pytest.raises(ValueError, match="values has 1 channels, the state equations give 2"):
        EKF(LINEAR).fit(np.zeros((5, 1)))
    with pytest.raises(ValueError, match="particles is 1"):
        ParticleFilter(LINEAR, 1)
