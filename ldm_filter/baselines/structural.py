"""statsmodels' structural time series and dynamic factors, with the methods of the other baselines (``pip install statsmodels``)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from ldm_filter.baselines.series import Array, Forecast, as_series, check_fitted, check_horizon

__all__ = ["DynamicFactor", "UnobservedComponents"]

# Parameters are fitted on at most so many rows: statsmodels' likelihood is a loop over them, and its gradient a difference per parameter.
MOST_ROWS = 3000


class _Structural:
    """A statsmodels state-space model per group of channels: parameters by maximum likelihood, then its exact filter with missing entries."""

    mean_: Array
    scale_: Array
    parameters_: list[Array]

    def __init__(self, iterations: int = 50) -> None:
        self.iterations = iterations

    def fit(self, values: Any, observed: Any = None) -> Self:
        """Maximum likelihood on the longest training series, its first 3000 rows at most.

        Args:
            values: ``(time, channel)`` or ``(series, time, channel)``, NaN = missing.
            observed: more to hide, boolean, ``(..., time)`` or the shape of ``values``.

        Raises:
            ValueError: a channel without any variation. ImportError: statsmodels is not installed.
        """
        series = as_series(values, observed)
        count = np.maximum(series.observed.sum((0, 1)), 1)
        self.mean_ = series.values.sum((0, 1)) / count
        self.scale_ = np.sqrt((np.square(series.values - self.mean_) * series.observed).sum((0, 1)) / count)
        if (self.scale_ <= 0).any():
            raise ValueError(f"training values are constant in channels {np.flatnonzero(self.scale_ <= 0).tolist()}; leave them out")
        rows = self._standardised(np.where(series.observed, series.values, np.nan))[series.observed.any(-1).sum(1).argmax()]
        rows = rows[: np.flatnonzero(~np.isnan(rows).all(-1)).max() + 1][:MOST_ROWS]
        models = [self._model(rows[:, part]) for part in self._parts()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # statsmodels tells of its optimiser
            self.parameters_ = [np.asarray(model.fit(disp=False, maxiter=self.iterations).params) for model in models]
        return self

    def one_step(self, values: Any, observed: Any = None) -> Forecast:
        """Each observation as predicted from those before it."""

        def predicted(fitted: Any) -> tuple[Any, Any]:
            return fitted.filter_results.forecasts.T, np.diagonal(fitted.filter_results.forecasts_error_cov).copy()

        return self._answer(values, observed, predicted, smooth=False)

    def smooth(self, values: Any, observed: Any = None) -> Forecast:
        """Observations given all steps: mean and std of another look at the same step."""

        def smoothed(fitted: Any) -> tuple[Any, Any]:
            results = fitted.smoother_results
            design, noise = results.design[..., 0], np.diag(results.obs_cov[..., 0])
            spread = np.einsum("ij,jkt,ik->ti", design, results.smoothed_state_cov, design)
            return (design @ results.smoothed_state).T + results.obs_intercept[..., 0], spread + noise

        return self._answer(values, observed, smoothed, smooth=True)

    def forecast(self, values: Any, horizon: int, observed: Any = None) -> Forecast:
        """Steps 1 ... horizon after the end, ``(..., horizon, channel)``."""
        check_horizon(horizon)

        def ahead(fitted: Any) -> tuple[Any, Any]:
            found = fitted.get_forecast(horizon)
            cov = np.asarray(found.var_pred_mean)
            return np.asarray(found.predicted_mean).reshape(horizon, -1), np.diagonal(cov, axis1=1, axis2=2) if cov.ndim == 3 else cov

        return self._answer(values, observed, ahead, smooth=False)

    def _answer(self, values: Any, observed: Any, take: Callable[[Any], tuple[Any, Any]], *, smooth: bool) -> Forecast:
        series = as_series(values, observed)
        check_fitted(self, "mean_", series.values.shape[-1])
        means, stds = [], []
        for rows in self._standardised(np.where(series.observed, series.values, np.nan)):
            found = []
            for part, parameters in zip(self._parts(), self.parameters_, strict=True):
                model = self._model(rows[:, part])
                found.append(take(model.smooth(parameters) if smooth else model.filter(parameters)))
            mean, variance = (np.concatenate([_columns(part) for part in both], axis=1) for both in zip(*found, strict=True))
            means.append(mean * self.scale_ + self.mean_)
            stds.append(np.sqrt(np.maximum(variance, 1e-12)) * self.scale_)
        return Forecast(series.shaped(np.stack(means)), series.shaped(np.stack(stds)))

    def _standardised(self, values: Array) -> Array:
        return (values - self.mean_) / self.scale_

    def _parts(self) -> list[slice]:
        """The channels of each model."""
        raise NotImplementedError

    def _model(self, rows: Array) -> Any:
        raise NotImplementedError


def _columns(values: Any) -> Array:
    """``(time,)`` or ``(time, channel)`` as the latter."""
    array = np.asarray(values, dtype=float)
    return array.reshape(len(array), -1)


class UnobservedComponents(_Structural):
    """A local linear trend, a season of trigonometric harmonics and an irregular part, for each channel by itself.

    Source: Harvey 1989, ch. 2; statsmodels' ``UnobservedComponents``, through its exact diffuse or approximate start.

    Args:
        season: steps of a season, not necessarily whole; None: none.
        harmonics: of the season.
        iterations: of the optimiser, at most.
    """

    def __init__(self, season: float | None = None, harmonics: int = 2, iterations: int = 50) -> None:
        super().__init__(iterations)
        self.season, self.harmonics = season, harmonics

    def _parts(self) -> list[slice]:
        return [slice(c, c + 1) for c in range(len(self.mean_))]

    def _model(self, rows: Array) -> Any:
        from statsmodels.tsa.statespace.structural import UnobservedComponents as Model

        season = None if self.season is None else [{"period": self.season, "harmonics": self.harmonics}]
        return Model(rows[:, 0], "local linear trend", freq_seasonal=season)


class DynamicFactor(_Structural):
    """A few factors that follow a vector autoregression, x_t = L f_t + e_t with autoregressive errors, fitted by EM.

    Source: Banbura & Modugno 2014; statsmodels' ``DynamicFactorMQ``. (The gradient climb of its plain ``DynamicFactor`` is still far from the
    top after 200 iterations on three channels, where EM takes 0.3 s.)

    Args:
        factors: how many. order: of their autoregression.
        iterations: of EM, at most.
    """

    def __init__(self, factors: int = 2, order: int = 2, iterations: int = 200) -> None:
        super().__init__(iterations)
        self.factors, self.order = factors, order

    def _parts(self) -> list[slice]:
        return [slice(None)]

    def _model(self, rows: Array) -> Any:
        from statsmodels.tsa.statespace.dynamic_factor_mq import DynamicFactorMQ as Model

        return Model(rows, factors=self.factors, factor_orders=self.order, standardize=False)
