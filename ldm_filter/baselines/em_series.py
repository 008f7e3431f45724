"""Principal components and a linear Kalman filter by EM, for series with gaps: `PCAKalman` in the units of the data."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ldm_filter.baselines.naive import linear_interpolation
from ldm_filter.baselines.pca import PCAKalman
from ldm_filter.baselines.series import Array, Forecast, Series, as_series, check_fitted, check_horizon, run_filter
from ldm_filter.core.kalman import filter_moments, forecast
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["PCAKalmanSeries"]

WINDOW = 200
FLOOR = 1e-6
# Beyond so many channels (frames) a step is either taken whole or left out: a measurement of all channels costs their cube.
MOST_CHANNELS = 64


class PCAKalmanSeries:
    """`PCAKalman` that predicts, fills and forecasts the channels themselves, with missing entries.

        h_t = A h_{t-1} + w_t,   x_t = m + V C h_t + e_t,   e_t ~ N(0, V R V' + s^2 (I - V V'))      (channels standardised)

    A, Q, C, R are those of `PCAKalman`, fitted on windows of training data whose gaps are interpolated; s^2 is the variance that the components
    leave unexplained. With up to 64 channels the channels are the measurements, so that single missing ones are exact; with more (frames) the
    components of complete steps are. What a channel adds to the variance of its predictions is what they leave on training data.

    Args:
        state_dim: n, number of states.
        latent_dim: m, number of principal components; default as many as there are states, at most the channels.
        adaptive_noise: as in `PCAKalman`, for complete steps of more than 64 channels.
    """

    mean_: Array
    scale_: Array
    model_: PCAKalman

    def __init__(self, state_dim: int, latent_dim: int | None = None, adaptive_noise: bool = False) -> None:
        self.state_dim, self.latent_dim, self.adaptive_noise = state_dim, latent_dim, adaptive_noise

    def fit(self, values: Any, observed: Any = None) -> Self:
        """Fit on ``(time, channel)`` or ``(series, time, channel)``, NaN = missing (pad series of unequal length with NaN).

        Raises:
            ValueError: a channel that never varies or is never observed in some series, or dimensions out of range.
        """
        series = as_series(values, observed)
        count = np.maximum(series.observed.sum((0, 1)), 1)
        self.mean_ = series.values.sum((0, 1)) / count
        self.scale_ = np.sqrt((np.square(series.values - self.mean_) * series.observed).sum((0, 1)) / count)
        channels = len(self.mean_)
        if channels <= MOST_CHANNELS and (self.scale_ <= 0).any():
            raise ValueError(f"training values are constant in channels {np.flatnonzero(self.scale_ <= 0).tolist()}; leave them out")
        # pixels share a scale: one that hardly ever lights up is no more important than the others
        self.scale_ = self.scale_ if channels <= MOST_CHANNELS else np.full(channels, np.sqrt(np.mean(self.scale_**2)))
        windows = _windows(series)
        latent = min(self.state_dim, channels) if self.latent_dim is None else self.latent_dim
        windows = (windows - self.mean_) / self.scale_
        self.model_ = PCAKalman(self.state_dim, latent, self.adaptive_noise).fit(windows)
        _start_anywhere(self.model_, windows)
        _, rest = self.model_._project(torch.from_numpy(windows))
        self._rest = float(rest.mean()) if latent < channels else 0.0
        self._own = self._own_variance(windows)
        return self

    def filter(self, values: Any, observed: Any = None) -> Forecast:
        """Observations as estimated from the past and present of each step: mean and std of another look at the same step."""
        return self._estimate(values, observed)

    def smooth(self, values: Any, observed: Any = None) -> Forecast:
        """As `filter`, from all steps."""
        return self._estimate(values, observed, smooth=True)

    def one_step(self, values: Any, observed: Any = None) -> Forecast:
        """Each observation as predicted from those before it."""
        return self._estimate(values, observed, predict=True)

    def forecast(self, values: Any, horizon: int, observed: Any = None) -> Forecast:
        """Steps 1 ... horizon after the end, ``(..., horizon, channel)``."""
        check_horizon(horizon)
        series, ssm, measured, mask = self._problem(values, observed)
        filtered, n = filter_moments(ssm, measured, mask)[0], self.state_dim
        last = Gaussian(filtered.mean[:, -1], filtered.cov[:, -1].expand(len(filtered.mean), n, n))
        return self._observation(forecast(ssm, last, horizon), series)

    def state(self, values: Any, observed: Any = None) -> Gaussian:
        """Filtered states ``(series, time, n)`` with covariance."""
        _, ssm, measured, mask = self._problem(values, observed)
        return run_filter(ssm, measured, mask)

    def _estimate(self, values: Any, observed: Any, *, smooth: bool = False, predict: bool = False) -> Forecast:
        series, ssm, measured, mask = self._problem(values, observed)
        return self._observation(run_filter(ssm, measured, mask, smooth=smooth, predict=predict), series)

    def _problem(self, values: Any, observed: Any) -> tuple[Series, StateSpace, Gaussian, Tensor | None]:
        series = as_series(values, observed)
        check_fitted(self, "mean_", series.values.shape[-1])
        x = torch.from_numpy((series.values - self.mean_) / self.scale_ * series.observed)
        mask, inner = torch.from_numpy(series.observed), self.model_.model_
        if x.shape[-1] <= MOST_CHANNELS:
            directions, constant, noise = self._loading()
            ssm = inner.ssm._replace(observation_matrix=directions, observation_offset=constant)
            measured = Gaussian(x, noise)
        else:
            mask = mask.all(-1)
            ssm, measured = inner.ssm, self.model_.measure(x)
        shared = bool((mask == mask[:1]).all())
        return series, ssm, measured, None if mask.all() else mask[:1] if shared else mask

    def _loading(self) -> tuple[Tensor, Tensor, Tensor]:
        """V C, the mean, and the covariance of an observation given the state, in standardised channels."""
        inner, v = self.model_.model_, self.model_.components_
        constant = self.model_.mean_ + v @ inner.ssm.observation_offset
        rest = self._rest * (torch.eye(len(v), dtype=v.dtype) - v @ v.mT)
        return v @ inner.ssm.observation_matrix, constant, v @ self._noise() @ v.mT + rest + FLOOR * torch.eye(len(v), dtype=v.dtype)

    def _own_variance(self, windows: Array) -> Tensor:
        """Variance of each channel beside that of the state: of one-step predictions of training data, less what the state explains."""
        inner = self.model_.model_
        loading = self.model_.components_ @ inner.ssm.observation_matrix
        belief = run_filter(inner.ssm, self.model_.measure(windows), None, predict=True)
        mean = belief.mean @ loading.mT + self.model_.mean_ + self.model_.components_ @ inner.ssm.observation_offset
        error = (torch.from_numpy(windows) - mean).square().flatten(0, 1).mean(0)
        spread = _variance(loading, belief.cov.flatten(0, 1).mean(0))
        return torch.maximum(error - spread, 0.01 * error + FLOOR)

    def _noise(self) -> Tensor:
        """R of the components, for a step of average noise."""
        return self.model_.model_.measurement_cov * (self._rest if self.adaptive_noise and self._rest > 0 else 1.0)

    def _observation(self, belief: Gaussian, series: Series) -> Forecast:
        ssm, v = self.model_.model_.ssm, self.model_.components_
        loading = v @ ssm.observation_matrix
        mean = belief.mean @ loading.mT + self.model_.mean_ + v @ ssm.observation_offset
        # a series at a time: of frames, covariance times loading has as many numbers as pixels and states together
        variance = torch.stack([_variance(loading, cov) for cov in belief.cov]) + self._own
        std = variance.expand(mean.shape).sqrt().numpy() * self.scale_
        return Forecast(series.shaped(mean.numpy() * self.scale_ + self.mean_), series.shaped(std))


def _variance(loading: Tensor, cov: Tensor) -> Tensor:
    """diag(L P L') of covariances ``(..., n, n)``, for every row of L ``(d, n)``: ``(..., d)``."""
    return ((loading @ cov) * loading).sum(-1)


def _start_anywhere(model: PCAKalman, windows: Array) -> None:
    """Let a series start in any state that the training data visit: a few windows do not tell how their first steps are distributed."""
    mean, cov = (torch.from_numpy(part) for part in model.filter(windows))
    states, inner = mean.flatten(0, 1), model.model_
    initial = Gaussian(states.mean(0), torch.cov(states.mT, correction=0).reshape(cov.shape[-2:]) + cov.flatten(0, 1).mean(0))
    model.model_ = inner._replace(ssm=inner.ssm._replace(initial=initial))


def _windows(series: Series) -> Array:
    """Windows of one length of the training data, gaps interpolated, ``(windows, steps, channel)``."""
    seen = np.any(series.observed, axis=-1)
    lengths = np.where(seen.any(1), seen.shape[1] - seen[:, ::-1].argmax(1), 0)
    length = min(WINDOW, int(lengths.min()))
    parts = []
    for values, observed, steps in zip(series.values, series.observed, lengths, strict=True):
        filled = linear_interpolation(values[:steps], observed[:steps])
        starts = np.linspace(0, steps - length, -(-steps // length)).astype(int)  # the last ones overlap rather than lose the end
        parts += [filled[start : start + length] for start in starts]
    return np.stack(parts)
