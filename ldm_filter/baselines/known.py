"""Filters on state equations that the user knows: extended and unscented Kalman filters (filterpy) and a bootstrap particle filter.

They stand for what classical filtering reaches with the true model, beside filters that learn it from data. Series are filtered one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from filterpy.kalman import ExtendedKalmanFilter, MerweScaledSigmaPoints, UnscentedKalmanFilter
from scipy.stats import multivariate_normal

from ldm_filter.baselines.series import Array, Forecast, Mask, as_series, check_horizon
from ldm_filter.types import FilterResult, Gaussian

__all__ = ["EKF", "UKF", "ParticleFilter", "StateEquations"]

Function = Callable[[Array], Array]


@dataclass(frozen=True)
class StateEquations:
    """A model that is known:  x_t = f(x_{t-1}) + w,  w ~ N(0, Q),   y_t = h(x_t) + v,  v ~ N(0, R),   x_0 ~ N(mean, cov).

    Attributes:
        transition: f, ``(..., n)`` to ``(..., n)``. observation: h, ``(..., n)`` to ``(..., m)``. Both for any leading axes.
        transition_cov: Q ``(n, n)``. measurement_cov: R ``(m, m)``.
        initial_mean, initial_cov: the belief about the state of the first row, ``(n,)`` and ``(n, n)``.
        transition_jacobian, observation_jacobian: ``(n,)`` to ``(n, n)`` and ``(m, n)``; default central differences.

    Raises:
        ValueError: shapes that do not fit together, or numbers that are not finite.
    """

    transition: Function
    observation: Function
    transition_cov: Any
    measurement_cov: Any
    initial_mean: Any
    initial_cov: Any
    transition_jacobian: Function | None = None
    observation_jacobian: Function | None = None

    def __post_init__(self) -> None:
        for name in ("transition_cov", "measurement_cov", "initial_mean", "initial_cov"):
            value = np.asarray(getattr(self, name), dtype=float)
            if not np.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinite values")
            object.__setattr__(self, name, value)
        n = self.initial_mean.size
        shapes = {"initial_mean": (n,), "initial_cov": (n, n), "transition_cov": (n, n), "measurement_cov": (self.outputs, self.outputs)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape} for {n} states and {self.outputs} outputs")
        made = {"transition": (self.transition, n), "observation": (self.observation, self.outputs)}
        for name, (function, size) in made.items():
            shape = np.shape(function(np.zeros((3, n)) + self.initial_mean))
            if shape != (3, size):
                raise ValueError(f"{name} gives shape {shape} for states of shape {(3, n)}, expected {(3, size)}: it must take any leading axes")

    @property
    def outputs(self) -> int:
        """m, the size of an observation."""
        return np.shape(self.measurement_cov)[0]

    def slopes(self, function: Function, jacobian: Function | None, x: Array) -> Array:
        """The Jacobian at ``x (n,)``."""
        if jacobian is not None:
            return np.asarray(jacobian(x), dtype=float)
        step = 1e-6 * np.maximum(1.0, np.abs(x))
        moved = function(np.concatenate([x + np.diag(step), x - np.diag(step)]))
        return ((moved[: x.size] - moved[x.size :]) / (2 * step[:, None])).T


class _Steps(NamedTuple):
    """One series: means and covariances, ``(T, n)``, ``(T, n, n)``, ``(T, m)``, ``(T, m, m)``, and the log-likelihood ``(T,)``."""

    predicted: Array
    predicted_cov: Array
    filtered: Array
    filtered_cov: Array
    projected: Array
    projected_cov: Array
    log_likelihood: Array


class _KnownFilter:
    """What the three share: they need no fit, and a forecast is a filter over steps that are not observed."""

    def __init__(self, equations: StateEquations) -> None:
        self.equations = equations

    def fit(self, values: Any, observed: Any = None) -> Self:
        """Nothing is learned; the values are only checked."""
        self._check(as_series(values, observed).values)
        return self

    def filter(self, values: Any, observed: Any = None) -> FilterResult:
        """Beliefs about the state, all float64, ``(series, time, ...)``.

        Args:
            values: ``(time, m)`` or ``(series, time, m)``, NaN = missing, also in single channels.
            observed: more to hide, boolean, ``(..., time)`` or the shape of ``values``.
        """
        series = as_series(values, observed)
        self._check(series.values)
        runs = [self._run(z, seen) for z, seen in zip(series.values, series.observed, strict=True)]
        parts = [torch.from_numpy(np.stack(part)) for part in zip(*runs, strict=True)]
        return FilterResult(Gaussian(*parts[0:2]), Gaussian(*parts[2:4]), Gaussian(*parts[4:6]), parts[6])

    def one_step(self, values: Any, observed: Any = None) -> Forecast:
        """Each observation as predicted from those before it."""
        projected, series = self.filter(values, observed).projected, as_series(values, observed)
        std = projected.cov.diagonal(dim1=-2, dim2=-1).sqrt()
        return Forecast(series.shaped(projected.mean.numpy()), series.shaped(std.numpy()))

    def fill(self, values: Any, observed: Any = None) -> Forecast:
        """Missing entries as the past predicts them: these filters do not look back."""
        return self.one_step(values, observed)

    def forecast(self, values: Any, horizon: int, observed: Any = None) -> Forecast:
        """Steps 1 ... horizon after the end, ``(..., horizon, m)``."""
        check_horizon(horizon)
        series = as_series(values, observed)
        longer = np.concatenate(
            [np.where(series.observed, series.values, np.nan), np.full((len(series.values), horizon, self.equations.outputs), np.nan)], 1
        )
        ahead = self.one_step(longer)
        return Forecast(series.shaped(ahead.mean[:, -horizon:]), series.shaped(ahead.std[:, -horizon:]))

    def state(self, values: Any, observed: Any = None) -> Gaussian:
        """Filtered states ``(series, time, n)`` with covariance."""
        return self.filter(values, observed).filtered

    def _run(self, z: Array, seen: Mask) -> _Steps:
        raise NotImplementedError

    def _check(self, values: Array) -> None:
        if values.shape[-1] != self.equations.outputs:
            raise ValueError(f"values has {values.shape[-1]} channels, the state equations give {self.equations.outputs}")


class EKF(_KnownFilter):
    """The extended Kalman filter: mean and covariance through the tangents of f and h. filterpy's ``ExtendedKalmanFilter`` does the updates.

    Source: Jazwinski 1970, ch. 8; Bar-Shalom, Li & Kirubarajan 2001, ch. 10.3.

    >>> walk = StateEquations(lambda x: x, lambda x: x, [[0.1]], [[1.0]], [0.0], [[1.0]])
    >>> EKF(walk).filter([[1.0], [float("nan")], [2.0]]).filtered.mean.ravel().round(decimals=3).tolist()
    [0.5, 0.5, 1.118]
    """

    def _run(self, z: Array, seen: Mask) -> _Steps:
        e, rows = self.equations, []
        kf = ExtendedKalmanFilter(dim_x=e.initial_mean.size, dim_z=e.outputs)
        kf.x, kf.P, kf.Q, kf.R = e.initial_mean.copy(), e.initial_cov.copy(), e.transition_cov, e.measurement_cov
        for t in range(len(z)):
            if t:
                kf.F = e.slopes(e.transition, e.transition_jacobian, kf.x)
                kf.x, kf.P = np.asarray(e.transition(kf.x), dtype=float), kf.F @ kf.P @ kf.F.T + kf.Q
            slope = e.slopes(e.observation, e.observation_jacobian, kf.x)
            ahead, cov = np.asarray(e.observation(kf.x), dtype=float), slope @ kf.P @ slope.T + e.measurement_cov
            before, kept = (kf.x.copy(), kf.P.copy()), seen[t]
            if kept.any():
                part, expected = slope[kept], ahead[kept]
                kf.update(z[t, kept], lambda _, part=part: part, lambda _, expected=expected: expected, R=e.measurement_cov[np.ix_(kept, kept)])
            rows.append((*before, kf.x.copy(), kf.P.copy(), ahead, cov, _density(z[t], ahead, cov, kept)))
        return _Steps(*(np.stack(part) for part in zip(*rows, strict=True)))


class UKF(_KnownFilter):
    """The unscented Kalman filter, by filterpy: mean and covariance of Merwe's scaled sigma points after f and h.

    Args:
        equations: the model.
        alpha, beta, kappa: spread of the sigma points; kappa defaults to 3 - n.

    Source: Wan & van der Merwe 2000.
    """

    def __init__(self, equations: StateEquations, alpha: float = 0.5, beta: float = 2.0, kappa: float | None = None) -> None:
        super().__init__(equations)
        self.alpha, self.beta, self.kappa = alpha, beta, kappa

    def _run(self, z: Array, seen: Mask) -> _Steps:
        e, rows = self.equations, []
        n = e.initial_mean.size
        points = MerweScaledSigmaPoints(n, self.alpha, self.beta, 3.0 - n if self.kappa is None else self.kappa)
        kf = UnscentedKalmanFilter(n, e.outputs, 1.0, hx=e.observation, fx=lambda x, _: np.asarray(e.transition(x), dtype=float), points=points)
        kf.x, kf.P, kf.Q, kf.R = e.initial_mean.copy(), e.initial_cov.copy(), e.transition_cov, e.measurement_cov
        for t in range(len(z)):
            if t:
                kf.predict()
            before, kept = (kf.x.copy(), kf.P.copy()), seen[t]
            kf.sigmas_f = points.sigma_points(kf.x, kf.P)  # anew about the prediction, with its process noise
            images = np.asarray(e.observation(kf.sigmas_f), dtype=float)
            ahead = kf.Wm @ images
            cov = (images - ahead).T @ (kf.Wc[:, None] * (images - ahead)) + e.measurement_cov
            if kept.any():
                kf.update(
                    z[t, kept], R=e.measurement_cov[np.ix_(kept, kept)], hx=lambda x, kept=kept: np.asarray(e.observation(x), dtype=float)[kept]
                )
            rows.append((*before, kf.x.copy(), kf.P.copy(), ahead, cov, _density(z[t], ahead, cov, kept)))
        return _Steps(*(np.stack(part) for part in zip(*rows, strict=True)))


class ParticleFilter(_KnownFilter):
    """The bootstrap particle filter: draws from f, weighted by h, resampled (systematically) when fewer than half of them count.

    Means and covariances are those of the weighted particles; the log-likelihood is the log mean weight. Source: Gordon, Salmond & Smith 1993.

    Args:
        equations: the model.
        particles: N.
        seed: of the draws; the same for every series.
    """

    def __init__(self, equations: StateEquations, particles: int = 1000, seed: int = 0) -> None:
        super().__init__(equations)
        if particles < 2:
            raise ValueError(f"particles is {particles}, expected at least 2")
        self.particles, self.seed = particles, seed

    def _run(self, z: Array, seen: Mask) -> _Steps:
        e, rows, count = self.equations, [], self.particles
        rng = np.random.default_rng(self.seed)
        x = rng.multivariate_normal(e.initial_mean, e.initial_cov, count)
        weights = np.full(count, 1.0 / count)
        for t in range(len(z)):
            if t:
                x = np.asarray(e.transition(x), dtype=float) + rng.multivariate_normal(np.zeros(x.shape[1]), e.transition_cov, count)
            before, kept, ahead = _moments(x, weights), seen[t], np.asarray(e.observation(x), dtype=float)
            projected, spread = _moments(ahead, weights)
            value = 0.0
            if kept.any():
                fit = multivariate_normal(np.zeros(kept.sum()), e.measurement_cov[np.ix_(kept, kept)]).logpdf(z[t, kept] - ahead[:, kept])
                log_weights = np.log(np.maximum(weights, 1e-300)) + fit
                top = log_weights.max()
                total = np.exp(log_weights - top).sum()
                weights, value = np.exp(log_weights - top) / total, float(top + np.log(total))
            rows.append((*before, *_moments(x, weights), projected, spread + e.measurement_cov, value))
            if 1.0 / np.square(weights).sum() < count / 2:
                places = (rng.random() + np.arange(count)) / count
                x = x[np.minimum(np.searchsorted(np.cumsum(weights), places), count - 1)]
                weights = np.full(count, 1.0 / count)
        return _Steps(*(np.stack(part) for part in zip(*rows, strict=True)))


def _moments(x: Array, weights: Array) -> tuple[Array, Array]:
    mean = weights @ x
    return mean, (x - mean).T @ (weights[:, None] * (x - mean))


def _density(z: Array, mean: Array, cov: Array, kept: Mask) -> float:
    """log N of the entries that are observed; 0 without any."""
    if not kept.any():
        return 0.0
    return float(multivariate_normal.logpdf(z[kept], mean[kept], cov[np.ix_(kept, kept)]))
