"""What a fitted LDMFilter answers: filter, smooth, forecast, sample, score, and what is derived from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ldm_filter.core.gating import Gate
from ldm_filter.data.results import to_dataset
from ldm_filter.estimator import settings
from ldm_filter.estimator.adaptation import Adaptation
from ldm_filter.estimator.comparison import Comparing
from ldm_filter.estimator.context import to_device
from ldm_filter.estimator.diagnosis import Diagnosis, diagnose
from ldm_filter.estimator.forecasts import Forecasts
from ldm_filter.estimator.handover import Handover
from ldm_filter.estimator.inference import observation_moments, predictive_density, result_fields
from ldm_filter.estimator.robust import anomaly_fields, as_gate, run_gated
from ldm_filter.online import OnlineFilter
from ldm_filter.types import Context, Gaussian

__all__ = ["Queries"]


class Queries(Forecasts, Adaptation, Comparing, Handover):
    """The methods of :class:`~ldm_filter.LDMFilter` that need a fitted model."""

    def filter(self, data: Any, inputs: Any = None, times: Any = None, gate: Gate | str | None = None) -> Any:
        """Filtered, predicted and projected beliefs at every step.

        Args:
            data: as for ``fit``: the same channels, any number and length of series.
            inputs: known controls of the same steps, where the model was fitted with them.
            times: of an array or tensor, its stamps: seconds or dates as in the fit.
            gate: what to do with outliers, a :class:`~ldm_filter.Gate` or its kind ``"hard" | "inflate" | "student-t"``; None takes
                every observation as it comes.

        Returns:
            xarray.Dataset (a list of them for a list): ``filtered_mean``, ``filtered_cov``, the same for ``predicted`` and (in the latent)
            ``projected`` and ``latent``, ``log_likelihood``, ``nis`` (divided by m; NaN where nothing is observed), ``reconstruction_mean`` and
            ``reconstruction_std`` of the observation in the data's units, ``observed``; with a gate also ``gate_weight`` (1: taken as it came, 0:
            rejected) and ``gate_outside`` (consecutive measurements outside), and the gate's counts in the attribute ``gate``.

        Raises:
            ValueError, TypeError: data unlike that of ``fit``, not fitted yet, or no gate.
        """
        run = self._run(data, inputs, times)
        if gate is None:
            return self._dataset(run)
        run, decided = run_gated(run, self._model(), as_gate(gate))
        return self._dataset(run, decided)

    def anomalies(self, data: Any, gate: Gate | str | None = None, inputs: Any = None, times: Any = None) -> Any:
        """How improbable each observation is, given everything before it.

        Args:
            data, inputs, times: as for :meth:`filter`.
            gate: as for :meth:`filter`; with one, an outlier does not spoil the predictions that follow it.

        Returns:
            Dataset (a list of them for a list): ``p_value`` of the step, P(chi2_m > m NIS) in the latent, and ``channel_p_value`` of every
            entry, two-sided, from its one-step prediction in the data's units; ``score`` and ``channel_score``, -log10 of them (3: one in a
            thousand). NaN where nothing is observed.
        """
        run = self._run(data, inputs, times)
        if gate is not None:
            run, _ = run_gated(run, self._model(), as_gate(gate))
        return to_dataset(anomaly_fields(run, self._model(), self.readout_), run.sequences, run.labels, self._attrs())

    def smooth(self, data: Any, inputs: Any = None, times: Any = None) -> Any:
        """As :meth:`filter`, with ``smoothed_mean`` and ``smoothed_cov``; the reconstruction is then that of the smoothed states."""
        return self._dataset(self._run(data, inputs, times, smooth=True))

    def sample(self, data: Any = None, num_paths: int = 1, steps: int | None = None, seed: int = 0, inputs: Any = None, times: Any = None) -> Any:
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
        settings.check_seed(seed)
        generator = torch.Generator(device=model.encoder.center.device).manual_seed(seed)
        with torch.no_grad():
            if data is None:
                nothing = torch.zeros(1, int(steps or 1), *model.encoder.event_shape, dtype=self.dtype)
                sequences, labels, _ = self._read(nothing, inputs, times)
                labels, context = labels._replace(series=None), to_device(sequences.context, generator.device)
                paths = model.dynamics.prior_paths(int(steps or 1), generator, num_paths, context)
            else:
                run = self._run(data, inputs, times)
                sequences, labels, context = run.sequences, run.labels, run.sequences.context
                paths = model.dynamics.posterior_paths(run.result, generator, num_paths, context)
            observations = settings.observation_draws(model, self.readout_, paths, generator, context)
        fields = {
            "state_paths": (("path", "series", "time", "state"), paths),
            "observation_paths": (("path", "series", "time", *labels.event_dims), observations),
        }
        return to_dataset(fields, sequences, labels, self._attrs())

    def score(self, data: Any, inputs: Any = None, times: Any = None) -> float:
        """Mean one-step predictive log-density of the observation, per step and channel, in nats (of the data's units).

            1/N sum_{t, c} log N(x_tc; E[x_tc | x_<t], Var[x_tc | x_<t])      over the observed entries

        It compares across state sizes and latent scales, which the latent log-likelihood does not.
        """
        run = self._run(data, inputs, times)
        return float(predictive_density(run, self._model(), self.readout_).nanmean())

    def encode(self, data: Any, inputs: Any = None, times: Any = None) -> Any:
        """The encoder's Gaussian measurement of every observation: Dataset with ``latent_mean`` and ``latent_cov``."""
        run = self._run(data, inputs, times)
        fields = result_fields(run, self.readout_, self._model())
        return to_dataset({name: fields[name] for name in ("latent_mean", "latent_cov")}, run.sequences, run.labels, self._attrs())

    def decode(self, states: Any, inputs: Any = None, covs: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the observation at states ``(..., state)``, known or with covariances ``covs (..., state, state)`` (and
        inputs ``(..., input)``, where the model has some), in the data's units: ``(..., *event)`` each.
        """
        model = self._model()
        numbers = np.asarray(states)
        if numbers.dtype.kind not in "buif" or not np.isfinite(numbers).all():
            raise ValueError(f"states are of dtype {numbers.dtype}, expected finite real numbers (..., {self.state_dim})")
        exact = torch.as_tensor(numbers, dtype=self.dtype, device=model.encoder.center.device)
        if exact.ndim < 1 or exact.shape[-1] != self.state_dim:
            raise ValueError(f"states have shape {tuple(exact.shape)}, expected (..., {self.state_dim}); the last dimension is the state")
        flat = exact.reshape(1, -1, self.state_dim)
        known = None if inputs is None else torch.as_tensor(np.asarray(inputs), device=flat.device).reshape(1, flat.shape[1], -1)
        if known is None and self.input_labels_ is not None:
            raise ValueError(
                f"`inputs` is None, but the model was fitted with inputs {list(self.input_labels_.channels)}; pass them for these states"
            )
        sizes = (self.state_dim, self.state_dim)
        spread = flat.new_zeros(1, 1, *sizes) if covs is None else torch.as_tensor(np.asarray(covs)).to(flat).reshape(1, -1, *sizes)
        with torch.no_grad():
            mean, std = observation_moments(model, self.readout_, Gaussian(flat, spread), Context(inputs=known))
        shape = (*exact.shape[:-1], *model.encoder.event_shape)
        return mean.reshape(shape).cpu().numpy(), std.reshape(shape).cpu().numpy()

    def diagnose(self, data: Any, inputs: Any = None, times: Any = None) -> Diagnosis:
        """Is the filter consistent? NIS with bounds, whiteness, coverage, PIT, the spectrum of A in units of time, and advice. Printable."""
        run = self._run(data, inputs, times)
        return diagnose(run, self._model(), self.readout_, getattr(self, "sizes_", None))

    def online(self, streams: int | None = None, lag: int = 0, gate: Gate | str | None = None) -> OnlineFilter:
        """A filter that takes one observation at a time at constant cost, starting from the initial belief.

        Args:
            streams: number of streams that are stepped together; None: one.
            lag: steps kept for late observations and for ``smoothed()``. gate: as for :meth:`filter`.
        """
        chosen = None if gate is None else as_gate(gate)
        return OnlineFilter(self._model(), step_seconds=self.labels_.attrs.get("step"), streams=streams, lag=lag, gate=chosen)
