"""LDMFilter: fit without labels, then filter, smooth, forecast, sample, score."""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Series
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filterpy.kalman import KalmanFilter
from torch import nn

from ldm_filter.checkpoint import load_checkpoint, save_checkpoint
from ldm_filter.core.kalman import forecast as forecast_states
from ldm_filter.core.kalman import sample_paths
from ldm_filter.core.smoothing import sample_posterior
from ldm_filter.data.labels import parse
from ldm_filter.data.results import forecast_output, to_dataset
from ldm_filter.estimator import fitting, settings
from ldm_filter.estimator.diagnosis import Diagnosis, diagnose
from ldm_filter.estimator.handover import as_filterpy
from ldm_filter.estimator.inference import Run, last_belief, observation_moments, result_fields, run_filter
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout, fit_readout
from ldm_filter.objectives.objective import Objective, resolve_objective
from ldm_filter.online import OnlineFilter
from ldm_filter.training import History, TrainingOptions
from ldm_filter.types import Gaussian, Labels, Sequences

__all__ = ["LDMFilter"]


class LDMFilter:
    """Self-supervised Kalman filtering of time series: a learned encoder in front of an exact linear-Gaussian filter.

        z_t = f(x_t),   h_t = A h_{t-1} + w,  w ~ N(0, Q),   z_t = C h_t + v,  v ~ N(0, R_t)
        maximise  < log P(z_t | z_<t) > + H[z_t]        (alignment + uniformity; arXiv 2605.03517, eq. 13)

    Args:
        state_dim: n, the size of the latent state. A motion that holds k frequencies needs 2 k.
        latent_dim: m, the size of the encoder's output; default the state's, at most the number of entries of one observation.
        encoder: ``"auto"``, ``"mlp"``, ``"conv"``, or an ``nn.Module`` from ``(N, *event)`` standardised to ``(N, latent_dim)``.
        dynamics: ``"linear"``.
        noise: ``"constant"`` measurement covariance, or ``"input"``: a network of the observation, so noisy frames count for less.
        objective: entropy estimator, ``"auto"``, ``"log-det"``, ``"conditional-log-det"``, ``"knn"``, ``"kde"``, ``"jacobian"`` (exact,
            for as many latents as channels) or ``"stop-gradient"``.
        mutual_information: maximise F_MI (default) or F_LDM.
        readout: ``"auto"``, ``"linear"`` or ``"mlp"``: from the state back to the data, fitted after training.
        transition_cov: ``"full"`` or ``"diagonal"`` Q.
        observation: ``"learned"`` C, or ``"selector"`` for [I 0].
        window: steps of a training window; default up to 100.
        learning_rate: peak rate of the encoder. ``dynamics_rate``: that of the dynamics, as a multiple.
        mask_rate: share of entries hidden at random in training; default 0.1 where single channels are missing in the data, else 0.
        seed: of everything random; the same seed gives the same model bit for bit on one machine.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``. dtype: ``torch.float32`` or ``torch.float64``.
        devices, precision: of Lightning Fabric, for data-parallel and mixed-precision training.

    Attributes:
        model_: the fitted :class:`~ldm_filter.models.latent_filter.LatentFilter`. readout_: its read-out to the data.
        history_: what happened in training. labels_: channels and layout seen in ``fit``.

    Example:
        >>> walk = np.cumsum(np.random.default_rng(0).normal(size=(300, 2)), axis=0)
        >>> model = LDMFilter(state_dim=2).fit(walk, epochs=2, progress=False)
        >>> model.filter(walk).filtered_mean.shape
        (300, 2)
    """

    def __init__(
        self,
        state_dim: int,
        latent_dim: int | None = None,
        encoder: str | nn.Module = "auto",
        dynamics: str = "linear",
        noise: str = "constant",
        objective: str = "auto",
        mutual_information: bool = True,
        readout: str = "auto",
        transition_cov: str = "full",
        observation: str = "learned",
        window: int | None = None,
        learning_rate: float = 3e-3,
        dynamics_rate: float = 10.0,
        mask_rate: float | None = None,
        seed: int = 0,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        devices: int = 1,
        precision: str | None = None,
    ) -> None:
        self.state_dim, self.latent_dim, self.encoder, self.dynamics = state_dim, latent_dim, encoder, dynamics
        self.noise, self.objective, self.mutual_information = noise, objective, mutual_information
        self.readout, self.transition_cov, self.observation, self.window = readout, transition_cov, observation, window
        self.learning_rate, self.dynamics_rate, self.mask_rate = learning_rate, dynamics_rate, mask_rate
        self.seed, self.device, self.dtype, self.devices, self.precision = seed, device, dtype, devices, precision

    # ------------------------------------------------------------------------------------------------------------ fitting

    def fit(
        self,
        data: Any,
        inputs: Any = None,
        validation: Any = 0.1,
        epochs: int | None = None,
        batch_size: int | None = None,
        progress: bool = True,
        log_path: str | Path | None = None,
    ) -> LDMFilter:
        """Train on series without labels.

        Args:
            data: ndarray ``(time, channel)``, ``(series, time, channel)`` or ``(series, time, y, x[, colour])``, tensor, DataFrame,
                DataArray, Dataset, or a list of them with unequal lengths. NaN means missing.
            inputs: known controls; not built yet.
            validation: held-out data, the share of ``data`` to hold out, or None.
            epochs: default 20, more for small data (so that there are 600 updates). batch_size: windows; default up to 32.
            progress: show a bar. log_path: a JSONL file, one line per epoch.

        Returns:
            self.

        Raises:
            ValueError, TypeError: an argument or the data is not as described; the message says what to change.
            CollapseError: training could not be kept from a collapse.
        """
        settings.check(self.get_params())
        settings.refuse_inputs(inputs)
        settings.check_counts(epochs=epochs, batch_size=batch_size)
        sequences, labels = parse(data, min_steps=2, dtype=self.dtype)
        event_shape = tuple(sequences.values.shape[2:])
        latent_dim = self.latent_dim or min(self.state_dim, int(np.prod(event_shape)))
        model = fitting.build(event_shape, self.get_params(), self.encoder, latent_dim, self.dtype)
        held_out = validation if validation is None or isinstance(validation, float) else self._parse(validation, labels, "validation")[0]
        plan = fitting.make_plan(sequences, held_out, self.window, batch_size, epochs, self.seed)
        fitting.initialise(model, plan.training.sequences)
        square = len(event_shape) == 1 and latent_dim == event_shape[0] and (self.objective != "auto" or fitting.mostly_complete(sequences))
        objective = Objective(resolve_objective(self.objective, self.noise, square), self.mutual_information)
        self.history_: History = fitting.run_training(model, objective, plan, self._options(plan, sequences, progress, log_path))
        model.eval()
        fitting.finish(model, plan.training.sequences)
        self.model_: LatentFilter = model
        self.labels_: Labels = labels
        self.readout_: Readout = fitting.fit_observation_readout(model, plan, self.readout, self.seed)
        self.target_readout_: Readout | None = None
        self.target_names_: list[str] = []
        return self

    def fit_readout(self, data: Any, targets: Any, kind: str | None = None) -> LDMFilter:
        """Fit a supervised read-out of physical quantities; ``filter`` and ``smooth`` then also give ``target_mean`` and ``target_cov``.

        Args:
            data: as for ``filter``.
            targets: container of the same length(s), ``(time, target)`` per series; NaN where unknown.
            kind: ``"linear"``, ``"mlp"`` or ``"auto"``; default that of the model.

        Returns:
            self.

        Raises:
            ValueError: lengths of data and targets differ.
        """
        run = self._run(data)
        wanted, labels = parse(targets, dtype=self.dtype, name="targets")
        if wanted.values.shape[:2] != run.sequences.values.shape[:2] or not torch.equal(wanted.lengths, run.sequences.lengths):
            raise ValueError(
                f"targets have (series, time) {tuple(wanted.values.shape[:2])}, data {tuple(run.sequences.values.shape[:2])}; give one row per step"
            )
        belief = Gaussian(*(part.cpu() for part in run.result.filtered))
        fitted = fit_readout(belief, wanted.values.flatten(2), wanted.observed.flatten(2), kind or self.readout)
        self.target_readout_ = fitted.to(self._model().encoder.center.device)
        self.target_names_ = list(labels.channels)
        return self

    # ---------------------------------------------------------------------------------------------------------- inference

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
            states = forecast_states(model.dynamics(), last_belief(run), horizon)
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
                paths = sample_paths(model.dynamics(), int(steps or 1), generator, num_paths)
                nothing = torch.zeros(1, int(steps or 1), *model.encoder.event_shape, dtype=self.dtype)
                sequences, labels = self._parse(nothing, self.labels_)
                labels = labels._replace(series=None)
            else:
                run = self._run(data)
                sequences, labels = run.sequences, run.labels
                paths = sample_posterior(model.dynamics(), run.result, generator, num_paths)
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

    # ---------------------------------------------------------------------------------------------------------- book-keeping

    def save(self, path: str | Path) -> None:
        """Write weights and configuration to one ``.safetensors`` file."""
        save_checkpoint(path, *settings.to_checkpoint(self))

    @classmethod
    def load(cls, path: str | Path, encoder: nn.Module | None = None, device: str = "auto") -> LDMFilter:
        """Read a file that :meth:`save` wrote.

        Args:
            path: the file.
            encoder: the module, where the model was built with one of the user's own.
            device: where to put the model.

        Raises:
            CheckpointError: truncated, foreign, or written by a newer version.
        """
        tensors, config = load_checkpoint(path)
        return settings.from_checkpoint(cls, tensors, config, encoder, device)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn has it."""
        return {name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"}

    def set_params(self, **params: Any) -> LDMFilter:
        """Change constructor arguments.

        Raises:
            ValueError: a name that the constructor does not know.
        """
        unknown = set(params) - set(self.get_params())
        if unknown:
            raise ValueError(f"{sorted(unknown)} are not parameters of LDMFilter, which has {sorted(self.get_params())}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: parameter.default for name, parameter in inspect.signature(type(self).__init__).parameters.items()}
        shown = (f"{name}={value!r}" for name, value in self.get_params().items() if not (value is defaults[name] or value == defaults[name]))
        return f"LDMFilter({', '.join(shown)})"

    def _model(self) -> LatentFilter:
        if not hasattr(self, "model_"):
            raise ValueError("this LDMFilter is not fitted yet; call fit(data) or LDMFilter.load(path) first")
        return self.model_

    def _parse(self, data: Any, expected: Labels, name: str = "data") -> tuple[Sequences, Labels]:
        return parse(data, expected=expected, dtype=self.dtype, name=name)

    def _run(self, data: Any, smooth: bool = False) -> Run:
        model = self._model()
        return run_filter(model, *self._parse(data, self.labels_), smooth=smooth)

    def _dataset(self, run: Run) -> Any:
        fields = result_fields(run, self.readout_, self._model())
        coords = {}
        if self.target_readout_ is not None:
            belief = run.result.filtered if run.smoothed is None else run.smoothed
            fields |= settings.target_fields(self.target_readout_, belief)
            coords = {"target": self.target_names_, "target_aux": self.target_names_}
        return to_dataset(fields, run.sequences, run.labels, self._attrs(), coords)

    def _attrs(self) -> dict[str, Any]:
        return {"config": settings.to_json(self.get_params()), "title": "ldm_filter result"}

    def _options(self, plan: fitting.Plan, sequences: Sequences, progress: bool, log_path: str | Path | None) -> TrainingOptions:
        mask_rate = settings.default_mask_rate(sequences) if self.mask_rate is None else self.mask_rate
        return TrainingOptions(
            epochs=plan.epochs,
            learning_rate=self.learning_rate,
            dynamics_rate=self.dynamics_rate,
            seed=self.seed,
            accelerator=self.device,
            devices=self.devices,
            precision=self.precision or ("64-true" if self.dtype == torch.float64 else "32-true"),
            mask_rate=mask_rate,
            log_path=log_path,
            progress=progress,
        )
