"""Constant-velocity and constant-acceleration Kalman filters, channel by channel: what a tracker uses when it knows nothing else."""

from __future__ import annotations

from math import factorial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from filterpy.common import Q_continuous_white_noise
from torch import Tensor

from ldm_filter.baselines.series import Array, Forecast, Mask, Series, as_series, check_fitted, check_horizon, run_filter
from ldm_filter.core.kalman import filter_moments, forecast
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["ConstantAcceleration", "ConstantVelocity", "constant_velocity_smoother"]

# q dt^(2 k + 1) / r from "hardly ever turns" to "the noise is all motion", half a decade apart, for k = 1 and 2
RATIOS = 10.0 ** np.arange(-6.0, 5.01, 0.5)
ACCELERATION_RATIOS = 10.0 ** np.arange(-10.0, 5.01, 0.5)
WINDOW, WINDOWS = 200, 256


class ConstantVelocity:
    """Position and velocity of each channel by itself, with white acceleration.

        d/dt (position, velocity) = (velocity, white noise of density q),   y = position + N(0, r)
        A = [[1, dt], [0, 1]],  Q = q [[dt^3 / 3, dt^2 / 2], [dt^2 / 2, dt]]

    Source: Bar-Shalom, Li & Kirubarajan 2001, ch. 6.2.2. It is the filter of filterpy's ``KalmanFilter`` with
    ``Q_continuous_white_noise``, for all channels and series at once.

    Args:
        dt: time between steps, in seconds (or any unit: the velocities' too).

    After `fit`:
        process_noise_: q, ``(channel,)``.  measurement_noise_: r, ``(channel,)``, a variance.
        position_mean_, position_var_, velocity_var_: the belief about the first step, ``(channel,)``.
    """

    process_noise_: Array
    measurement_noise_: Array
    position_mean_: Array
    position_var_: Array
    velocity_var_: Array
    # k, the derivative of the position that stays constant but for noise, and the ratios of noises that `fit` tries
    order: ClassVar[int] = 1
    ratios: ClassVar[Array] = RATIOS

    def __init__(self, dt: float = 1.0) -> None:
        self.dt = dt

    def fit(self, values: Any, observed: Any = None, *, gap: int | None = None) -> Self:
        """Choose q and r per channel by maximum likelihood: q / r on a grid of half decades, r in closed form.

        At most 256 windows of 200 steps, evenly spaced over the training data, are looked at.

        Args:
            values: ``(time, channel)`` or ``(series, time, channel)``, NaN = missing (pad series of unequal length with NaN).
            observed: more to hide, boolean, ``(..., time)`` or the shape of ``values``.
            gap: None: the likelihood of each step given those before it. A number of steps: that of gaps of so many steps given what surrounds
                them, the better choice for filling gaps where motion is not of constant velocity.

        Raises:
            ValueError: a channel with fewer than 4 observed entries or no variation, dt not positive, or windows too short for the gap.
        """
        if not self.dt > 0:
            raise ValueError(f"dt must be positive, got {self.dt}")
        series = as_series(values, observed)
        count = series.observed.sum((0, 1))
        self.position_mean_ = series.values.sum((0, 1)) / np.maximum(count, 1)
        self.position_var_ = (np.square(series.values - self.position_mean_) * series.observed).sum((0, 1)) / np.maximum(count, 1)
        if (count < 4).any() or (self.position_var_ <= 0).any():
            bad = np.flatnonzero((count < 4) | (self.position_var_ <= 0)).tolist()
            raise ValueError(f"training values are constant or have fewer than 4 observed entries in channels {bad}")
        pairs = series.observed[:, 1:] & series.observed[:, :-1]
        steps = np.square(np.diff(series.values, axis=1)) * pairs
        rate = steps.sum((0, 1)) / np.maximum(pairs.sum((0, 1)), 1) / self.dt**2
        self.velocity_var_ = np.where(rate > 0, rate, self.position_var_ / self.dt**2)
        z, mask = (_flat(x) for x in _windows(series))
        hidden = torch.zeros_like(mask) if gap is None else _gaps(mask, gap)
        r, ratio = _likeliest(z, mask, hidden, len(rate), self.order, self.ratios)
        self.measurement_noise_, self.process_noise_ = r, ratio * r / self.dt ** (2 * self.order + 1)
        return self

    def one_step(self, values: Any, observed: Any = None) -> Forecast:
        """Each observation as predicted from those before it; arguments and result as `filter`."""
        series, ssm, measurements, mask = self._problem(values, observed)
        return self._position(run_filter(ssm, measurements, mask, predict=True), series, True)

    def state(self, values: Any, observed: Any = None) -> Gaussian:
        """Filtered positions and their derivatives, channel after channel, ``(series, time, n)``, covariance ``(series, time, n, n)``."""
        series, ssm, measurements, mask = self._problem(values, observed)
        belief, (batch, steps, channels) = run_filter(ssm, measurements, mask), series.values.shape
        size = self.order + 1
        mean = belief.mean.reshape(batch, channels, steps, size).permute(0, 2, 1, 3).reshape(batch, steps, -1)
        blocks = belief.cov.expand(batch * channels, steps, size, size).reshape(batch, channels, steps, size, size).permute(0, 2, 1, 3, 4)
        cov = mean.new_zeros(batch, steps, channels, size, channels, size)
        for c in range(channels):
            cov[:, :, c, :, c] = blocks[:, :, c]
        return Gaussian(mean, cov.reshape(batch, steps, channels * size, channels * size))

    def filter(self, values: Any, observed: Any = None, *, observation_noise: bool = True) -> Forecast:
        """Estimates from the past and present of each step.

        Args:
            values: ``(time, channel)`` or ``(series, time, channel)``, NaN = missing: the update is skipped.
            observed: as in `fit`.
            observation_noise: the std is that of an observation there (with r), to be held against held-out data; False: of the position.

        Returns:
            Mean and std, the shape of ``values``.
        """
        return self._estimate(values, observed, observation_noise, smooth=False)

    def smooth(self, values: Any, observed: Any = None, *, observation_noise: bool = True) -> Forecast:
        """Estimates from all steps (Rauch-Tung-Striebel); arguments and result as `filter`."""
        return self._estimate(values, observed, observation_noise, smooth=True)

    def forecast(self, values: Any, horizon: int, observed: Any = None, *, observation_noise: bool = True) -> Forecast:
        """Positions at steps 1 ... horizon after the end, ``(..., horizon, channel)``; arguments as `filter`."""
        check_horizon(horizon)
        series, ssm, measurements, mask = self._problem(values, observed)
        filtered = filter_moments(ssm, measurements, mask)[0]
        size = self.order + 1
        last = Gaussian(filtered.mean[:, -1], filtered.cov[:, -1].expand(len(filtered.mean), size, size))
        return self._position(forecast(ssm, last, horizon), series, observation_noise)

    def _estimate(self, values: Any, observed: Any, observation_noise: bool, *, smooth: bool) -> Forecast:
        series, ssm, measurements, mask = self._problem(values, observed)
        return self._position(run_filter(ssm, measurements, mask, smooth=smooth), series, observation_noise)

    def _problem(self, values: Any, observed: Any) -> tuple[Series, StateSpace, Gaussian, Tensor]:
        """Every channel of every series as one row of a batch, ``(series * channel, time, 1)``."""
        series = as_series(values, observed)
        check_fitted(self, "process_noise_", series.values.shape[-1])
        batch = len(series.values)
        z, mask = _flat(series.values), _flat(series.observed)
        q, r, mean, position, velocity = (
            torch.from_numpy(np.tile(x, batch))
            for x in (self.process_noise_, self.measurement_noise_, self.position_mean_, self.position_var_, self.velocity_var_)
        )
        # every further derivative is as much smaller as velocity is than position
        variances = torch.stack([position * (velocity / position) ** k for k in range(self.order + 1)], -1)
        start = Gaussian(torch.stack([mean, *[torch.zeros_like(mean)] * self.order], -1), torch.diag_embed(variances))
        ssm = _model(self.dt, q[:, None, None, None], start, self.order)
        return series, ssm, Gaussian(z, r[:, None, None, None].clone()), mask

    def _position(self, belief: Gaussian, series: Series, observation_noise: bool) -> Forecast:
        batch, steps, channels = len(series.values), belief.mean.shape[1], series.values.shape[-1]
        shape = (batch, channels, steps)
        mean = belief.mean[..., 0].reshape(shape).transpose(1, 2).numpy()
        variance = belief.cov[..., 0, 0].expand(batch * channels, steps).reshape(shape).transpose(1, 2).numpy()
        std = np.sqrt(variance + (self.measurement_noise_ if observation_noise else 0.0))
        return Forecast(series.shaped(mean), series.shaped(std))


class ConstantAcceleration(ConstantVelocity):
    """Position, velocity and acceleration of each channel by itself, with white jerk; arguments and methods of `ConstantVelocity`.

        d/dt (position, velocity, acceleration) = (velocity, acceleration, white noise of density q),   y = position + N(0, r)

    Source: Bar-Shalom, Li & Kirubarajan 2001, ch. 6.2.3 (continuous Wiener process acceleration).
    """

    order: ClassVar[int] = 2
    ratios: ClassVar[Array] = ACCELERATION_RATIOS


def constant_velocity_smoother(values: Any, dt: float = 1.0, observed: Any = None, *, train: Any = None) -> Forecast:
    """Constant-velocity Kalman smoother whose noise is fitted on ``train`` (default: on ``values`` themselves); see `ConstantVelocity.smooth`.

    >>> line = np.arange(40.0)[:, None] + np.random.default_rng(0).normal(0, 0.1, (40, 1))
    >>> line[10:15] = np.nan
    >>> constant_velocity_smoother(line).mean[12].round(0).tolist()
    [12.0]
    """
    fitted = ConstantVelocity(dt)
    fitted = fitted.fit(values, observed) if train is None else fitted.fit(train)
    return fitted.smooth(values, observed)


def _flat(x: Array | Mask) -> Tensor:
    """``(series, time, channel)`` to ``(series * channel, time, 1)``."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(-1, x.shape[1], 1))


def _model(dt: float, density: Tensor, start: Gaussian, order: int) -> StateSpace:
    """A = exp(dt N) with the shift N, and the integral of exp(s N) e e' exp(s N)' over a step."""
    size = order + 1
    matrix = [[dt ** (j - i) / factorial(j - i) if j >= i else 0.0 for j in range(size)] for i in range(size)]
    transition = torch.tensor(matrix, dtype=torch.float64)
    noise = torch.as_tensor(Q_continuous_white_noise(size, dt, 1.0), dtype=torch.float64)
    observation = torch.eye(1, size, dtype=torch.float64)
    return StateSpace(transition, transition.new_zeros(size), density * noise, observation, transition.new_zeros(1), start)


def _windows(series: Series) -> tuple[Array, Mask]:
    """Up to WINDOWS windows of the training data ``(windows, time, channel)``, their first value taken off, and what was observed in them.

    Complete windows where there are any: they share their covariances, which is fast.
    """
    batch, steps, _ = series.values.shape
    length = min(WINDOW, steps)
    seen = {(b, t): series.observed[b, t : t + length] for b in range(batch) for t in range(0, steps - length + 1, length)}
    starts = [at for at, mask in seen.items() if mask.all()] or [at for at, mask in seen.items() if mask.any()]
    chosen = [starts[i] for i in np.unique(np.linspace(0, len(starts) - 1, min(WINDOWS, len(starts))).astype(int))]
    values = np.stack([series.values[b, t : t + length] for b, t in chosen])
    observed = np.stack([seen[at] for at in chosen])
    first = np.take_along_axis(values, observed.argmax(1)[:, None], axis=1)
    return (values - first) * observed, observed


def _gaps(mask: Tensor, gap: int) -> Tensor:
    """The middle third of every 3 gap steps, where observed, to be hidden and predicted."""
    steps = mask.shape[1]
    if gap < 1 or 3 * gap > steps:
        raise ValueError(f"gap must lie between 1 and {steps // 3}, a third of the training windows' {steps} steps, got {gap}")
    return mask & (torch.arange(steps) % (3 * gap) // gap == 1)[:, None]


def _likeliest(z: Tensor, mask: Tensor, hidden: Tensor, channels: int, order: int, ratios: Array) -> tuple[Array, Array]:
    """r and q / r (in steps) per channel that maximise the likelihood of the ``hidden`` entries, or else of each step given those before it.

    The start is diffuse, so the first order + 1 entries of a window do not count. For r = 1 the filter or smoother gives errors e and their variance
    S for every ratio; r = mean e^2 / S then maximises sum log N(e; 0, r S).
    """
    fill, shown = bool(hidden.any()), mask & ~hidden
    counts = (hidden if fill else mask & (mask.cumsum(1) > order + 1))[..., 0]
    given = None if shown.all() else shown[:1, :, 0] if (shown == shown[:1]).all() else shown
    start = Gaussian(z.new_zeros(order + 1), 1e8 * torch.eye(order + 1, dtype=z.dtype))
    one = torch.ones(1, 1, dtype=z.dtype)
    best, noise, ratio = (np.full(channels, x) for x in (-np.inf, np.nan, np.nan))
    for candidate in ratios:
        ssm = _model(1.0, candidate * one, start, order)
        belief = run_filter(ssm, Gaussian(z, one), given, smooth=fill, predict=not fill)
        variance = belief.cov[..., 0, 0] + 1
        squared = _mean_per_channel((z[..., 0] - belief.mean[..., 0]).square() / variance, counts, channels)
        value = -np.log(squared) - _mean_per_channel(variance.log(), counts, channels)
        better = value > best
        best, noise, ratio = np.where(better, value, best), np.where(better, squared, noise), np.where(better, candidate, ratio)
    return noise, ratio


def _mean_per_channel(x: Tensor, counts: Tensor, channels: int) -> Array:
    """Mean over windows and the steps that count, of ``(windows * channel, time)``."""
    shape = (-1, channels, counts.shape[-1])
    number = counts.reshape(shape).sum((0, 2)).clamp(min=1)
    return ((x * counts).reshape(shape).sum((0, 2)) / number).numpy()
