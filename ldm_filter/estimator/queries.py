"""What a fitted LDMFilter answers: filter, smooth, forecast, sample, score, and what is derived from them."""

from __future__ import annotations

from collections.abc import Sequence as Series
from typing import Any

import numpy as np
import torch
from filterpy.kalman import KalmanFilter

from ldm_filter.data.results import forecast_output, to_dataset
from ldm_filter.estimator import settings
from ldm_filter.estimator.diagnosis import Diagnosis, diagnose
from ldm_filter.estimator.handover import as_filterpy
from ldm_filter.estimator.inference import last_belief, observation_moments, result_fields
from ldm_filter.estimator.parameters import Parameters
from ldm_filter.online import OnlineFilter
from ldm_filter.types import Gaussian

__all__ = ["Queries"]


class Queries(Parameters):
    """The methods of :class:`~ldm_filter.LDMFilter` that need a fitted model."""

    def filter(self, data: Any) -> Any:
        """Filtered, predicted and projected beliefs at every step.

        Returns:
            xarray.Dataset (a list of them for a list): ``filtered_mean``, ``filtered_cov``, the same for ``predicted`` and (in the latent)
            ``projected`` and ``latent``, ``log_likelihood``, ``nis`` (divided by m; NaN where nothing is observed), ``reconstruction_mean`` and
            ``reconstruction_std`` of the observation in the data's units, ``observed``.

        Raises:
            ValueError, TypeError: data unlike that of ``fit``, or not fitted yet.
        """
        return self._dataset(self._run(data))

    def smooth(self, data: Any) -> Any:
        """As :meth:`filter`, with ``smoothed_mean`` and ``smoothed_cov``; the reconstruction is then that of the smoothed states."""
        return self._dataset(self._run(data, smooth=True))

    def forecast(self, data: Any, horizon: int, levels: Series[float] = (0.8, 0.95), inputs: Any = None) -> Any:
        """The observations 1 to ``horizon`` steps after the data, with prediction intervals.

        Returns:
            For a DataFrame a DataFrame with columns ``(channel, mean | std | lo-80 | hi-80 | ...)`` and the continued index; else a Dataset
            ``forecast_mean, forecast_std, forecast_lo, forecast_hi``.

        Raises:
            ValueError: horizon below 1 or a level outside (0, 1).
        """
        settings.refuse_inputs(inputs)
        settings.check_counts(horizon=horizon)
        run = self._run(data)
        model = self._model()
        with torch.no_grad():
            states = model.dynamics.forecast(last_belief(run), horizon)
            mean, std = observation_moments(model, self.readout_, states)
        return forecast_output(mean, std, levels, run.labels)

    def sample(self, data: Any = None, num_paths: int = 1, steps: int | None = None, seed: int = 0) -> Any:
        """Draw paths: of the posterior given data, or of the prior for ``steps`` steps without.

        Returns:
            Dataset with ``state_paths (path, [series,] time, state)`` and ``observation_paths (path, [series,] time, ...)`` in the data's units.

        Raises:
            ValueError: neither or both of data and steps.
        """
        if (data is None) == (steps is None):
            raise ValueError("sample needs data (posterior paths) or steps (prior paths), and not both")
        settings.check_counts(num_paths=num_paths, steps=steps)
        model = self._model()
        generator = torch.Generator(device=model.encoder.center.device).manual_seed(seed)
        with torch.no_grad():
            if data is None:
                paths = model.dynamics.prior_paths(int(steps or 1), generator, num_paths)
                nothing = torch.zeros(1, int(steps or 1), *model.encoder.event_shape, dtype=self.dtype)
                sequences, labels = self._parse(nothing, self.labels_)
                labels = labels._replace(series=None)
            else:
                run = self._run(data)
                sequences, labels = run.sequences, run.labels
                paths = model.dynamics.posterior_paths(run.result, generator, num_paths, run.sequences.context)
            observations = settings.observation_draws(model, self.readout_, paths, generator)
        fields = {
            "state_paths": (("path", "series", "time", "state"), paths),
            "observation_paths": (("path", "series", "time", *labels.event_dims), observations),
        }
        return to_dataset(fields, sequences, labels, self._attrs())

    def score(self, data: Any) -> float:
        """Mean one-step predictive log-density of the observation, per step and channel, in nats (of the data's units).

            1/N sum_{t, c} log N(x_tc; E[x_tc | x_<t], Var[x_tc | x_<t])      over the observed entries

        It compares across state sizes and latent scales, which the latent log-likelihood does not.
        """
        run = self._run(data)
        mean, std = observation_moments(self._model(), self.readout_, run.result.predicted)
        seen = run.sequences.observed.to(mean.device)
        values = run.sequences.values.to(mean.device)
        density = torch.distributions.Normal(mean.double(), std.double(), validate_args=False).log_prob(values.double())
        return float(density[seen].mean())

    def encode(self, data: Any) -> Any:
        """The encoder's Gaussian measurement of every observation: Dataset with ``latent_mean`` and ``latent_cov``."""
        run = self._run(data)
        fields = result_fields(run, self.readout_, self._model())
        return to_dataset({name: fields[name] for name in ("latent_mean", "latent_cov")}, run.sequences, run.labels, self._attrs())

    def decode(self, states: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the observation at known states ``(..., state)``, in the data's units: ``(..., *event)`` each."""
        model = self._model()
        exact = torch.as_tensor(np.asarray(states), dtype=self.dtype, device=model.encoder.center.device)
        if exact.ndim < 1 or exact.shape[-1] != self.state_dim:
            raise ValueError(f"states have shape {tuple(exact.shape)}, expected (..., {self.state_dim}); the last dimension is the state")
        flat = exact.reshape(1, -1, self.state_dim)
        mean, std = observation_moments(model, self.readout_, Gaussian(flat, flat.new_zeros(1, 1, self.state_dim, self.state_dim)))
        shape = (*exact.shape[:-1], *model.encoder.event_shape)
        return mean.reshape(shape).cpu().numpy(), std.reshape(shape).cpu().numpy()

    def diagnose(self, data: Any) -> Diagnosis:
        """Is the filter consistent? NIS with bounds, whiteness, coverage, the spectrum of A, and advice. Printable."""
        run = self._run(data)
        return diagnose(run, self._model(), self.readout_)

    def online(self, streams: int | None = None) -> OnlineFilter:
        """A filter that takes one observation at a time at constant cost, starting from the initial belief."""
        return OnlineFilter(self._model(), step_seconds=self.labels_.attrs.get("step"), streams=streams)

    def to_filterpy(self) -> KalmanFilter:
        """The latent filter as a ``filterpy.kalman.KalmanFilter``; feed it ``latent_mean`` (and, where R varies, ``latent_cov``) of ``encode``."""
        return as_filterpy(self._model())
