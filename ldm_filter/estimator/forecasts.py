"""The forecasting methods of LDMFilter."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Series
from typing import Any

import torch

from ldm_filter.data.forecasts import forecast_output
from ldm_filter.data.labels import parse
from ldm_filter.data.results import normal_width, to_datasets
from ldm_filter.data.times import future_times
from ldm_filter.estimator import settings
from ldm_filter.estimator.backtesting import Backtest, backtest
from ldm_filter.estimator.context import future_context, to_device
from ldm_filter.estimator.forecasting import calibrate, conditional, forecast_paths, from_end, from_origins
from ldm_filter.estimator.inference import run_filter
from ldm_filter.estimator.parameters import Parameters
from ldm_filter.types import Context, Labels, Sequences

__all__ = ["Forecasts"]


class Forecasts(Parameters):
    """What comes after the data."""

    def forecast(
        self,
        data: Any,
        horizon: int,
        levels: Series[float] = (0.8, 0.95),
        inputs: Any = None,
        times: Any = None,
        known: Any = None,
        quantiles: Series[float] = (),
        format: str | None = None,
        conformal: bool = False,
    ) -> Any:
        """The observations 1 to ``horizon`` steps after the data, with prediction intervals.

        Args:
            data, times: as for ``filter``.
            horizon: number of steps.
            levels: central intervals, shares in (0, 1). quantiles: probabilities in (0, 1).
            inputs: of the data's steps and the ``horizon`` steps after them, where the model has inputs.
            known: what is known ahead: a container like the data of ``horizon`` rows, NaN where a channel is not known. The forecast is then
                conditional on it, by smoothing.
            format: ``"wide"``, ``"sktime"``, ``"long"`` or ``"xarray"``; default as the data came.
            conformal: widths of the intervals from :meth:`calibrate` instead of those of the Gaussian.

        Returns:
            For a DataFrame a DataFrame with columns ``(channel, mean | std | lo-80 | hi-80 | ...)`` and the continued index, for long data
            ``unique_id, ds, mean, std, lo-80, ...``; else a Dataset ``forecast_mean, forecast_std, forecast_lo, forecast_hi`` (dim ``level``).

        Raises:
            ValueError: horizon below 1, a level outside (0, 1), inputs that do not reach over the horizon, ``conformal`` without a calibration.
        """
        sequences, labels, ahead = self._ahead(data, horizon, inputs, times)
        if known is None:
            mean, std = from_end(self._model(), self.readout_, run_filter(self._model(), sequences, labels), horizon, ahead)
        else:
            given = self._known(known, labels, horizon)
            mean, std = conditional(self._model(), self.readout_, sequences, labels, given, ahead)
        return forecast_output(mean, std, levels, labels, quantiles=quantiles, width=self._width(horizon, conformal), format=format)

    def forecast_paths(self, data: Any, horizon: int, num_paths: int = 100, seed: int = 0, inputs: Any = None, times: Any = None) -> Any:
        """Draws of the observations that follow: whole paths, whose steps and channels go together as they do in the model.

        Returns:
            Dataset with ``forecast_paths (path, [series,] time, ...)`` in the data's units; a list of them for a list.
        """
        settings.check_counts(num_paths=num_paths)
        sequences, labels, ahead = self._ahead(data, horizon, inputs, times)
        model = self._model()
        settings.check_seed(seed)
        generator = torch.Generator(device=model.encoder.center.device).manual_seed(seed)
        states = forecast_paths(model, run_filter(model, sequences, labels), horizon, ahead, num_paths, generator)
        with torch.no_grad():
            draws = settings.observation_draws(model, self.readout_, states, generator, ahead)
        fields = {"forecast_paths": (("path", "series", "time", *labels.event_dims), draws)}
        return to_datasets(fields, labels, future_times(labels, horizon), {})

    def calibrate(self, data: Any, horizon: int, every: int = 1, inputs: Any = None, times: Any = None) -> Any:
        """Let the intervals of ``forecast(conformal=True)`` hold their level on held-out data, whatever the shape of the errors.

        Forecasts from every ``every``-th step of the data are compared with what came; the width of every interval, step ahead and channel is
        then the quantile of the errors in standard deviations (split conformal prediction).

        Args:
            data, inputs, times: data that neither the fit nor a later judgement uses.
            horizon: steps ahead; a longer forecast takes the last one's widths.

        Returns:
            self.

        Raises:
            ValueError: too few forecasts.
        """
        settings.check_counts(horizon=horizon, every=every)
        run = self._run(data, inputs, times)
        first = min(20, max(0, int(run.sequences.lengths.max()) // 4))
        self.calibration_ = calibrate(from_origins(self._model(), self.readout_, run, horizon, first, every))
        return self

    def backtest(
        self,
        data: Any,
        horizon: int,
        every: int = 1,
        first: int | None = None,
        levels: Series[float] = (0.8, 0.95),
        season: int = 1,
        inputs: Any = None,
        times: Any = None,
        conformal: bool = False,
    ) -> Backtest:
        """Forecast from many origins within the data, each from its past alone, and compare with what came (rolling origin, no refitting).

        Args:
            data, inputs, times: as for ``filter``.
            horizon: steps ahead. every: steps between origins. first: the first origin; default a quarter into the data, at most 100.
            levels: of the intervals whose coverage is counted.
            season: steps of the naive forecast that MASE is relative to.
            conformal: with the widths of :meth:`calibrate`.

        Returns:
            :class:`~ldm_filter.estimator.backtesting.Backtest`: CRPS, MAE, RMSE, MASE and coverage by channel and step ahead. Printable.

        Raises:
            ValueError: series too short for a single forecast.
        """
        settings.check_counts(horizon=horizon, every=every, season=season)
        run = self._run(data, inputs, times)
        start = min(100, int(run.sequences.lengths.max()) // 4) if first is None else first
        found = from_origins(self._model(), self.readout_, run, horizon, start, every)
        return backtest(found, run.sequences, run.labels, tuple(levels), season, self._width(horizon, conformal))

    def _ahead(self, data: Any, horizon: int, inputs: Any, times: Any) -> tuple[Sequences, Labels, Context]:
        settings.check_counts(horizon=horizon)
        self._model()
        sequences, labels, known = self._read(data, inputs, times, horizon)
        ahead = future_context(self._model().dynamics, labels, self.labels_, horizon, known)
        return sequences, labels, to_device(ahead, self._model().encoder.center.device)

    def _known(self, known: Any, labels: Labels, horizon: int) -> Sequences:
        given, found = parse(known, expected=self.labels_, dtype=self.dtype, name="known")
        count = len(labels.times)
        if given.values.shape[1] != horizon or len(given.values) not in (1, count) or int(given.lengths.min()) < horizon:
            shape = tuple(given.values.shape[:2])
            raise ValueError(
                f"`known` has (series, steps) {shape}, expected {horizon} steps for each of {count} series; NaN where a channel is not known"
            )
        if found.kind in ("frame", "long") and labels.kind in ("frame", "long"):
            for index, wanted in zip(found.times, future_times(labels, horizon), strict=False):
                if not index.equals(wanted):
                    raise ValueError(f"`known` has times {index[0]} to {index[-1]}, expected those after the data, {wanted[0]} to {wanted[-1]}")
        values, observed = (part.expand(count, *part.shape[1:]) for part in given[:2])
        return Sequences(values, observed, given.lengths.expand(count))

    def _width(self, horizon: int, conformal: bool) -> Callable[[float], Any]:
        if not conformal:
            return normal_width
        if self.calibration_ is None:
            raise ValueError("conformal is True, but the model has no calibration; call calibrate(held_out_data, horizon) first")
        return self.calibration_.width(horizon)
