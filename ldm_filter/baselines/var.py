"""A vector autoregression run as a Kalman filter: gaps are integrated out, not filled."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ldm_filter.baselines.series import Array, Forecast, Mask, Series, as_series, check_fitted, check_horizon, run_filter
from ldm_filter.core.kalman import filter_moments, forecast
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["VARKalman"]

# Variance of the measurements, as a share of each channel's.
NOISE = 1e-6


class VARKalman:
    """VAR(p), x_t = b + sum_k B_k x_{t-k} + N(0, Sigma), as a state-space model in companion form.

        h_t = (x_t, ..., x_{t-p+1}),   A = [[B_1 ... B_p], [I 0]],   offset (b, 0),   Q = diag(Sigma, 0),   C = [I 0]

    Source: Luetkepohl 2005, ch. 2 and 18. The state of the first step has the training data's own mean and covariance.

    Measurements are exact but for a variance of 1e-6 of the channel's, which keeps every covariance definite. So what happens beyond p complete
    steps does not matter, and only the neighbourhoods of gaps are run (equal to the whole run to about 1e-4 standard deviations of the data).

    Args:
        order: p, steps looked back.
        ridge: penalty of the least squares fit, as a share of each channel's variance.

    After `fit`:
        coefficients_: B, ``(order, channel, channel)``, in the units of the data.
        innovation_cov_: Sigma, ``(channel, channel)``.  mean_: ``(channel,)``.  ssm_: the standardised model, a `StateSpace`.
    """

    mean_: Array
    scale_: Array
    coefficients_: Array
    innovation_cov_: Array
    ssm_: StateSpace

    def __init__(self, order: int, *, ridge: float = 1e-6) -> None:
        self.order, self.ridge = order, ridge

    def fit(self, values: Any, observed: Any = None) -> Self:
        """Least squares on all stretches of order + 1 steps without a gap.

        Args:
            values: ``(time, channel)`` or ``(series, time, channel)``, NaN = missing (pad series of unequal length with NaN).
            observed: more to hide, boolean, ``(..., time)`` or the shape of ``values``.

        Raises:
            ValueError: too few such stretches, a constant channel, or order or ridge out of range.
        """
        if int(self.order) != self.order or self.order < 1 or not self.ridge >= 0:
            raise ValueError(f"order must be a whole number, at least 1, and ridge at least 0, got {self.order} and {self.ridge}")
        rows = _stretches(as_series(values, observed), self.order)
        stretches, _, channels = rows.shape
        if stretches < (self.order + 1) * channels + 2:
            raise ValueError(
                f"training values hold {stretches} stretches of {self.order + 1} steps without a gap; "
                f"order {self.order} on {channels} channels needs {(self.order + 1) * channels + 2}: lower the order or give more data"
            )
        self.mean_, self.scale_ = rows.mean((0, 1)), rows.std((0, 1))
        if (self.scale_ <= 1e-12 * np.abs(self.mean_)).any():
            raise ValueError(f"training values are constant in channels {np.flatnonzero(self.scale_ <= 1e-12 * np.abs(self.mean_)).tolist()}")
        self._solve((rows - self.mean_) / self.scale_)
        return self

    def _solve(self, rows: Array) -> None:
        """Ridge regression, with a constant, of the last step of each standardised stretch on the steps before it, newest first."""
        both = _past_and_now(rows)
        self._set(both.mean(0), np.cov(both.T, bias=True))

    def adapted(self, values: Any, weight: float, observed: Any = None) -> Self:
        """A copy with the coefficients of other series, beside ``weight`` stretches like those of the fit.

        Args:
            values, observed: as in `fit`, of the same channels.
            weight: stretches that the fit so far counts for, positive.

        Raises:
            ValueError: another number of channels, no stretch without a gap, or a weight out of range.
        """
        check_fitted(self, "mean_", np.shape(values)[-1])
        if not weight > 0:
            raise ValueError(f"weight is {weight}, expected a positive number of stretches")
        both = _past_and_now((_stretches(as_series(values, observed), self.order) - self.mean_) / self.scale_)
        total = len(both) + weight
        mean = (both.sum(0) + weight * self._moments[0]) / total
        second = (both.T @ both + weight * (self._moments[1] + np.outer(self._moments[0], self._moments[0]))) / total
        own = copy.copy(self)
        own._set(mean, second - np.outer(mean, mean))
        return own

    def _set(self, mean: Array, cov: Array) -> None:
        """The model of the mean and covariance of (past, newest first; now), standardised."""
        self._moments = mean, cov
        channels = len(self.scale_)
        size = channels * self.order
        centre, gram = mean[:size], cov[:size, :size]
        weights = np.linalg.solve(gram + self.ridge * np.eye(size), cov[:size, size:]).T
        transition = _stabilised(np.asarray(weights, dtype=np.float64), self.order)
        constant = mean[size:] - transition @ centre
        sigma = cov[size:, size:] - transition @ cov[:size, size:] - cov[size:, :size] @ transition.T + transition @ gram @ transition.T
        units = self.scale_[:, None] / self.scale_
        self.coefficients_ = transition.reshape(channels, self.order, channels).transpose(1, 0, 2) * units
        self.innovation_cov_ = sigma * np.outer(self.scale_, self.scale_)
        noise, offset = np.zeros((size, size)), np.zeros(size)
        noise[:channels, :channels], offset[:channels] = sigma, constant
        a, b, q, c, d, start, spread = map(
            torch.from_numpy,
            (_companion(transition, self.order), offset, noise, np.eye(channels, size), np.zeros(channels), centre, gram + NOISE * np.eye(size)),
        )
        self.ssm_ = StateSpace(a, b, q, c, d, Gaussian(start, spread))

    def filter(self, values: Any, observed: Any = None) -> Forecast:
        """Estimates from the past and present of each step: in a gap, the forecast from before it.

        Args:
            values: ``(time, channel)`` or ``(series, time, channel)``, NaN = missing, also in single channels.
            observed: as in `fit`.

        Returns:
            Mean and std of the value, the shape of ``values``. Where it was observed, the mean is the value and std a thousandth of the channel's.
        """
        return self._estimate(values, observed, smooth=False)

    def smooth(self, values: Any, observed: Any = None) -> Forecast:
        """Estimates from all steps: the conditional mean of a gap given both of its sides; arguments and result as `filter`."""
        return self._estimate(values, observed, smooth=True)

    def forecast(self, values: Any, horizon: int, observed: Any = None) -> Forecast:
        """Steps 1 ... horizon after the end, ``(..., horizon, channel)``; arguments as `filter`."""
        check_horizon(horizon)
        series, z = self._standardised(values, observed)
        # from the last place on where every series has p complete steps, all before it is forgotten
        full = np.lib.stride_tricks.sliding_window_view(np.all(series.observed, axis=-1), min(self.order, z.shape[1]), axis=1)
        full = np.all(full, axis=-1)
        last = np.where(full.any(1), full.shape[1] - 1 - full[:, ::-1].argmax(1), 0).min()
        mask = torch.from_numpy(series.observed[:, last:])
        filtered = filter_moments(self.ssm_, Gaussian(z[:, last:], self._noise()), None if mask.all() else mask)[0]
        size = filtered.mean.shape[-1]
        end = Gaussian(filtered.mean[:, -1], filtered.cov[:, -1].expand(len(filtered.mean), size, size))
        belief = forecast(self.ssm_, end, horizon)
        channels = z.shape[-1]
        variance = belief.cov.diagonal(dim1=-2, dim2=-1)[..., :channels].expand(len(z), horizon, channels)
        return self._in_units(belief.mean[..., :channels].numpy(), variance.numpy(), series)

    def one_step(self, values: Any, observed: Any = None) -> Forecast:
        """Each observation as predicted from those before it; arguments and result as `filter`."""
        series, z = self._standardised(values, observed)
        mask = torch.from_numpy(series.observed)
        mask = mask[:1] if (mask == mask[:1]).all() else mask
        belief, channels = run_filter(self.ssm_, Gaussian(z, self._noise()), mask, predict=True), z.shape[-1]
        variance = belief.cov.diagonal(dim1=-2, dim2=-1)[..., :channels].expand(z.shape)
        return self._in_units(belief.mean[..., :channels].numpy(), variance.numpy(), series)

    def state(self, values: Any, observed: Any = None) -> Gaussian:
        """The last ``order`` values, newest first, ``(series, time, order * channel)``, gaps filled from the past, as if they were exact."""
        series = as_series(values, observed)
        filtered = self.filter(series.values, series.observed).mean
        steps = filtered.shape[1]
        lagged = [np.concatenate([filtered[:, :1].repeat(k, 1), filtered], 1)[:, :steps] for k in range(self.order)]
        mean = torch.from_numpy(np.concatenate(lagged, axis=-1))
        return Gaussian(mean, mean.new_zeros(1, 1, mean.shape[-1], mean.shape[-1]))

    def _estimate(self, values: Any, observed: Any, *, smooth: bool) -> Forecast:
        series, z = self._standardised(values, observed)
        seen = series.observed
        mean, variance = z.numpy().copy(), np.zeros(z.shape)
        for group in _grouped(_neighbourhoods(np.all(seen, axis=-1), self.order), seen):
            belief = self._run(group, z, seen, smooth=smooth)
            for row, (b, start, stop) in enumerate(group):
                mean[b, start:stop] = belief.mean[row, : stop - start].numpy()
                variance[b, start:stop] = belief.cov[row, : stop - start].numpy()
        return self._in_units(np.where(seen, z.numpy(), mean), np.where(seen, 0.0, variance), series)

    def _run(self, group: list[tuple[int, int, int]], z: Tensor, seen: Mask, *, smooth: bool) -> Gaussian:
        """Mean and variance (in ``cov``) of the channels in stretches of series, padded at the end to one length."""
        channels, length = z.shape[-1], max(stop - start for _, start, stop in group)
        part, mask = z.new_zeros(len(group), length, channels), torch.zeros(len(group), length, channels, dtype=torch.bool)
        for row, (b, start, stop) in enumerate(group):
            part[row, : stop - start] = z[b, start:stop]
            mask[row, : stop - start] = torch.from_numpy(seen[b, start:stop])
        mask = mask[:1] if (mask == mask[:1]).all() else mask
        belief = run_filter(self.ssm_, Gaussian(part, self._noise()), mask, smooth=smooth)
        variance = belief.cov.diagonal(dim1=-2, dim2=-1)[..., :channels]
        return Gaussian(belief.mean[..., :channels], variance.expand(part.shape))

    def _standardised(self, values: Any, observed: Any) -> tuple[Series, Tensor]:
        series = as_series(values, observed)
        check_fitted(self, "mean_", series.values.shape[-1])
        return series, torch.from_numpy((series.values - self.mean_) / self.scale_ * series.observed)

    def _noise(self) -> Tensor:
        return NOISE * torch.eye(len(self.mean_), dtype=torch.float64)

    def _in_units(self, mean: Array, variance: Array, series: Series) -> Forecast:
        return Forecast(series.shaped(mean * self.scale_ + self.mean_), series.shaped(np.sqrt(variance + NOISE) * self.scale_))


def _stretches(series: Series, order: int) -> Array:
    """All windows of order + 1 complete steps, ``(stretches, order + 1, channel)``."""
    if series.values.shape[1] <= order:
        raise ValueError(f"training series have {series.values.shape[1]} steps, order {order} needs at least {order + 1}")
    windows = np.lib.stride_tricks.sliding_window_view(series.values, order + 1, axis=1)
    complete = np.lib.stride_tricks.sliding_window_view(series.observed.all(-1), order + 1, axis=1).all(-1)
    return windows[complete].transpose(0, 2, 1)


def _past_and_now(rows: Array) -> Array:
    """``(stretches, (order + 1) * channel)``: the steps before the last, newest first, then the last."""
    return np.concatenate([rows[:, -2::-1].reshape(len(rows), -1), rows[:, -1]], axis=1)


def _companion(transition: Array, order: int) -> Array:
    channels = len(transition)
    return np.vstack([transition, np.eye(channels * (order - 1), channels * order)])


def _stabilised(transition: Array, order: int) -> Array:
    """The coefficients with B_k scaled by c^k, which scales every eigenvalue of the companion matrix by c, so that none exceeds 1."""
    radius = np.abs(np.linalg.eigvals(_companion(transition, order))).max()
    powers = np.repeat((1.0 / max(1.0, radius)) ** np.arange(1, order + 1), len(transition))
    return transition * powers


def _neighbourhoods(complete: Mask, reach: int) -> list[tuple[int, int, int]]:
    """(series, start, stop) of each run of incomplete steps with ``reach`` more steps on both sides, joined where they meet."""
    found = []
    for index, row in enumerate(complete):
        near = np.convolve(~row, np.ones(2 * reach + 1), mode="full")[reach : reach + len(row)] > 0
        edges = np.flatnonzero(np.diff(near, prepend=False, append=False))
        found += [(index, int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    return found


def _grouped(runs: list[tuple[int, int, int]], observed: Mask) -> list[list[tuple[int, int, int]]]:
    """Runs with the same gaps together, since they share their covariances; the odd ones by length, so that padding them wastes little."""
    alike: dict[tuple[int, bytes], list[tuple[int, int, int]]] = {}
    for b, start, stop in runs:
        alike.setdefault((stop - start, observed[b, start:stop].tobytes()), []).append((b, start, stop))
    odd: dict[int, list[tuple[int, int, int]]] = {}
    for (length, _), group in alike.items():
        if len(group) == 1:
            odd.setdefault(length.bit_length(), []).extend(group)
    return [*(group for group in alike.values() if len(group) > 1), *odd.values()]
