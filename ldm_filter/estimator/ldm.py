"""LDMFilter: what users build and fit; what a fitted one answers is in ``queries``."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Series
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filterpy.kalman import KalmanFilter
from torch import nn

from ldm_filter.data.labels import parse
from ldm_filter.estimator import fitting, settings
from ldm_filter.estimator.context import fit_context, parse_inputs
from ldm_filter.estimator.known import known_labels, known_model, known_readout, matrices_of
from ldm_filter.estimator.queries import Queries
from ldm_filter.estimator.selection import Size, compare_sizes, smallest_good
from ldm_filter.models.base import Dynamics
from ldm_filter.models.readout import fit_readout, split_off
from ldm_filter.training import History, TrainingOptions
from ldm_filter.types import Context, Gaussian, Sequences

__all__ = ["LDMFilter"]


class LDMFilter(Queries):
    """Self-supervised Kalman filtering of time series: a learned encoder in front of an exact linear-Gaussian filter.

        z_t = f(x_t),   h_t = A h_{t-1} + w,  w ~ N(0, Q),   z_t = C h_t + v,  v ~ N(0, R_t)
        maximise  < log P(z_t | z_<t) > + H[z_t]        (alignment + uniformity; arXiv 2605.03517, eq. 13)

    Args:
        state_dim: n, the size of the latent state. A motion that holds k frequencies needs 2 k. ``"auto"``: ``fit`` tries growing sizes for a
            few epochs each and puts in the smallest that is about as good as the best, by the likelihood of held-out data.
        latent_dim: m, the size of the encoder's output; default the state's, at most the number of entries of one observation.
        encoder: ``"auto"``, ``"mlp"``, ``"conv"``, ``"linear"``, or an ``nn.Module`` from ``(N, *event)`` standardised to ``(N, latent_dim)``.
        dynamics: ``"linear"``: a step per row, and several where the time index has a gap on its grid; ``"continuous"``: a stochastic differential
            equation, for irregular times; ``"locally-linear"``: stable matrices mixed by weights of the state; ``"ekf"``, ``"ukf"``: a residual
            network beside the linear motion, filtered by its tangents or by sigma points. The last three are for motions that are not one
            linear system (full turns and swings, limit cycles); they start at the linear filter and cost about ten times its time.
            ``"recurrent"``: a GRU predicts the next latent, which is then the state (``latent_dim = state_dim``). It has no posterior: ``filter``
            gives one-step predictions, ``score`` and ``encode`` work, ``smooth`` and longer forecasts are refused. Or a module of your own, a
            :class:`~ldm_filter.models.base.Dynamics`; it is trained in place.
        noise: ``"constant"`` measurement covariance; ``"input"``: a network of the observation, so noisy frames count for less; ``"state"``: a
            network of the predicted state; ``"adaptive"``: a process covariance that grows after surprises, for motions that jump.
        objective: entropy estimator, ``"auto"``, ``"log-det"``, ``"conditional-log-det"``, ``"scale-mixture"``, ``"knn"``, ``"kde"``,
            ``"jacobian"`` (exact, for as many latents as channels) or ``"stop-gradient"``; or a named method, which chooses the three below as well:
            ``"kalman"``, ``"ica"``, ``"temporal-ica"``, ``"vicreg"``, ``"vicreg-hinge"``, ``"simclr"``, ``"cpc"``, ``"byol"``, ``"simsiam"``,
            ``"jepa"``. See docs/objectives.md for when to use which.
        latent_model: what predicts the latents in training: ``"auto"``, the filter itself, or ``"recurrent"``, ``"pair"``, ``"pair-predictor"``,
            ``"pair-regression"``, ``"sources"``. With these the filter is fitted to the latents afterwards.
        space: ``"plane"``, or ``"sphere"`` for latents of unit length.
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
        sizes_: the sizes that ``state_dim="auto"`` tried. history_: what happened in training. labels_: channels and layout seen in ``fit``.

    Example:
        >>> import numpy as np
        >>> walk = np.cumsum(np.random.default_rng(0).normal(size=(300, 2)), axis=0)
        >>> model = LDMFilter(state_dim=2).fit(walk, epochs=2, progress=False)
        >>> model.filter(walk).filtered_mean.shape
        (300, 2)
    """

    def __init__(
        self,
        state_dim: int | str,
        latent_dim: int | None = None,
        encoder: str | nn.Module = "auto",
        dynamics: str | Dynamics = "linear",
        noise: str = "constant",
        objective: str = "auto",
        latent_model: str = "auto",
        space: str = "plane",
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
        self.state_dim: Any = state_dim
        self.latent_dim, self.encoder, self.dynamics = latent_dim, encoder, dynamics
        self.noise, self.objective, self.latent_model = noise, objective, latent_model
        self.space, self.mutual_information = space, mutual_information
        self.readout, self.transition_cov, self.observation, self.window = readout, transition_cov, observation, window
        self.learning_rate, self.dynamics_rate, self.mask_rate = learning_rate, dynamics_rate, mask_rate
        self.seed, self.device, self.dtype, self.devices, self.precision = seed, device, dtype, devices, precision

    def fit(
        self,
        data: Any,
        inputs: Any = None,
        validation: Any = 0.1,
        validation_inputs: Any = None,
        times: Any = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        progress: bool = True,
        log_path: str | Path | None = None,
        compare: Collection[str] = (),
    ) -> LDMFilter:
        """Train on series without labels.

        Args:
            data: ndarray ``(time, channel)``, ``(series, time, channel)`` or ``(series, time, y, x[, colour])``, tensor, DataFrame,
                DataArray, Dataset, or a list of them with unequal lengths. NaN means missing.
            inputs: known controls and exogenous series, a container like the data with a row per step (matched by time stamp where both have
                one); one series may serve all. They drive the state and the observation: h_t = A h_{t-1} + B u_t + w, z_t = C h_t + D u_t + v.
            validation: held-out data, the share of ``data`` to hold out, or None. validation_inputs: the inputs beside held-out data.
            times: of an array or tensor, its stamps ``(time,)`` in seconds or dates, or one such per series.
            epochs: default 20, more for small data (so that there are 600 updates). batch_size: windows; default up to 32.
            progress: show a bar. log_path: a JSONL file, one line per epoch.
            compare: names of other estimators; the cosine between their gradients of the encoder and the objective's is logged after every epoch
                (``cosine_knn`` and so on; `ldm_filter.plots.plot_training` draws them).

        Returns:
            self.

        Raises:
            ValueError, TypeError: an argument or the data is not as described; the message says what to change.
            CollapseError: training could not be kept from a collapse.
        """
        settings.check(self.get_params())
        settings.check_counts(epochs=epochs, batch_size=batch_size)
        settings.check_share("validation", validation)
        self._forget()
        self.sizes_: list[Size] = []
        if self.state_dim == "auto":
            held = {"validation": validation, "validation_inputs": validation_inputs}
            self.sizes_ = compare_sizes(self, data, inputs=inputs, times=times, epochs=epochs, batch_size=batch_size, **held)
            self.state_dim = smallest_good(self.sizes_)
        self._train(data, inputs, validation, validation_inputs, times, epochs, batch_size, progress, log_path, compare)
        return self

    def _train(
        self,
        data: Any,
        inputs: Any,
        validation: Any,
        validation_inputs: Any,
        times: Any,
        epochs: int | None,
        batch_size: int | None,
        progress: bool,
        log_path: str | Path | None,
        compare: Collection[str] = (),
    ) -> fitting.Plan:
        """:meth:`fit` with its arguments checked and the size of the state settled; returns how the data were split."""
        sequences, labels = parse(data, min_steps=2, dtype=self.dtype, times=times)
        self.labels_, self.input_labels_, self.calibration_ = labels, None, None
        if inputs is not None:
            known, self.input_labels_ = parse_inputs(inputs, labels, sequences, None)
            sequences = sequences._replace(context=Context(inputs=known.past))
        event_shape = tuple(sequences.values.shape[2:])
        latent_dim = settings.latents(self.get_params(), event_shape)
        settings.check_learnable(sequences, latent_dim)
        input_dim = 0 if self.input_labels_ is None else len(self.input_labels_.channels)
        model = fitting.build(event_shape, self.get_params(), self.encoder, latent_dim, self.dtype, input_dim)
        self.model_ = model
        sequences = fit_context(model.dynamics, sequences, labels)
        given = validation is not None and not isinstance(validation, float)
        held_out = self._read(validation, validation_inputs, name="validation")[0] if given else validation
        plan = fitting.make_plan(sequences, held_out, self.window, batch_size, epochs, self.seed)
        fitting.initialise(model, plan.training.sequences)
        square = len(event_shape) == 1 and latent_dim == event_shape[0] and (self.objective != "auto" or fitting.mostly_complete(sequences))
        objective = settings.composition(self.get_params(), square).objective
        options = self._options(plan, sequences, progress, log_path)
        compared = settings.comparisons(self.get_params(), square, compare)
        self.history_ = fitting.run_training(model, objective, plan, replace(options, compare=compared))
        if model.predictor is not None:
            fitting.fit_dynamics(model, plan, options, self.history_)
        fitting.finish(model.eval(), plan)
        self.readout_ = fitting.fit_observation_readout(model, plan, self.readout, self.seed)
        self.target_readout_ = None
        self.target_names_ = []
        return plan

    @classmethod
    def from_matrices(
        cls,
        transition_matrix: Any,
        transition_cov: Any,
        observation_matrix: Any,
        measurement_cov: Any,
        initial_mean: Any,
        initial_cov: Any,
        *,
        transition_offset: Any = None,
        observation_offset: Any = None,
        input_matrix: Any = None,
        feedthrough: Any = None,
        channels: Series[str] | None = None,
        inputs: Series[str] | None = None,
        step: float | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> LDMFilter:
        """The classical filter of a model that is known: nothing is learned, the data are the measurements, missing channels are exact.

            h_t = A h_{t-1} + a + B u_t + w,  w ~ N(0, Q),   x_t = C h_t + c + D u_t + v,  v ~ N(0, R),   h_0 ~ N(initial_mean, initial_cov)

        Args:
            transition_matrix, transition_cov: A and Q ``(n, n)``, stable or not.
            observation_matrix, measurement_cov: C ``(m, n)`` and R ``(m, m)``.
            initial_mean, initial_cov: the prediction for the first row, ``(n,)`` and ``(n, n)``.
            transition_offset, observation_offset: a ``(n,)`` and c ``(m,)``; default 0.
            input_matrix, feedthrough: B ``(n, u)`` and D ``(m, u)``; default no inputs.
            channels, inputs: names; default by position.
            step: the sampling interval of dated data in seconds, so that a gap on its grid is predicted over; None: a step per row.

        Raises:
            ValueError: shapes that do not fit, numbers that are not finite, a covariance that is not one.

        Example:
            >>> import numpy as np
            >>> one = np.eye(1)
            >>> walk = LDMFilter.from_matrices(one, 0.1 * one, one, one, np.zeros(1), one)
            >>> walk.filter(np.array([1.0, np.nan, 2.0])).filtered_mean.values.round(3).ravel().tolist()
            [0.5, 0.5, 1.118]
        """
        matrices = {
            "transition_matrix": transition_matrix,
            "transition_cov": transition_cov,
            "observation_matrix": observation_matrix,
            "measurement_cov": measurement_cov,
            "initial_mean": initial_mean,
            "initial_cov": initial_cov,
            "transition_offset": transition_offset,
            "observation_offset": observation_offset,
            "input_matrix": input_matrix,
            "feedthrough": feedthrough,
        }
        model = known_model(matrices, dtype)
        dynamics = model.dynamics
        made = cls(dynamics.state_dim, dynamics.latent_dim, encoder="direct", dynamics="matrices", readout="linear", dtype=dtype)
        made.model_, made.readout_, made.history_ = model, known_readout(model), History()
        made.labels_ = known_labels(channels, dynamics.latent_dim, step)
        made.input_labels_ = known_labels(inputs, dynamics.input_dim, None, "inputs") if dynamics.input_dim else None
        made.target_readout_, made.target_names_ = None, []
        dynamics.set_interval(1.0 if step is None else step)
        return made

    @classmethod
    def from_filterpy(cls, source: KalmanFilter, predict_first: bool = True, **options: Any) -> LDMFilter:
        """A ``filterpy.kalman.KalmanFilter`` as an LDMFilter: batches, gaps, smoothing and forecasts for the same model.

        Args:
            source: not changed.
            predict_first: its x and P are the belief *before* a ``predict()`` for the first row, as in ``source.batch_filter``; False: they are
                the prediction for the first row, as :meth:`to_filterpy` has it.
            options: ``channels``, ``inputs``, ``step``, ``dtype`` of :meth:`from_matrices`.

        Raises:
            TypeError: no such filter. ValueError: a fading memory, or correlated noises.
        """
        return cls.from_matrices(**matrices_of(source, predict_first), **options)

    def fit_readout(
        self, data: Any, targets: Any, kind: str | None = None, covariance: str = "constant", inputs: Any = None, times: Any = None
    ) -> LDMFilter:
        """Fit a supervised read-out of physical quantities; ``filter`` and ``smooth`` then also give ``target_mean`` and ``target_cov``.

        Args:
            data, inputs, times: as for ``filter``.
            targets: container of the same length(s), ``(time, target)`` per series; NaN where unknown.
            kind: ``"linear"``, ``"mlp"`` or ``"auto"``; default that of the model.
            covariance: of what the read-out cannot explain. ``"constant"``: one for all steps, beside the filter's own.
                ``"state-dependent"``: it turns and stretches with the estimate, for targets that move on a curve (along which their errors
                lie, so that one ellipse for all steps holds no level rightly); see `ldm_filter.metrics.covariance_regression`.

        Returns:
            self.

        Raises:
            ValueError: lengths of data and targets differ, or an unknown kind or covariance.
        """
        settings.check_choice("covariance", covariance, settings.READOUT_COVARIANCES)
        run = self._run(data, inputs, times)
        wanted, labels = parse(targets, dtype=self.dtype, name="targets")
        if wanted.values.shape[:2] != run.sequences.values.shape[:2] or not torch.equal(wanted.lengths, run.sequences.lengths):
            raise ValueError(
                f"targets have (series, time) {tuple(wanted.values.shape[:2])}, data {tuple(run.sequences.values.shape[:2])}; give one row per step"
            )
        belief = Gaussian(*(part.cpu() for part in self._model().with_inputs(run.result.filtered, run.sequences.context)))
        values, observed = wanted.values.flatten(2), wanted.observed.flatten(2)
        fitted = fit_readout(belief, values, observed, kind or self.readout)
        if covariance == "state-dependent":
            known = (belief, values, observed)
            fitting.turn_covariance(fitted, *(known if fitted.kind == "linear" else split_off(*known)[1]))
        self.target_readout_ = fitted.to(self._model().encoder.center.device)
        self.target_names_ = list(labels.channels)
        return self

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
