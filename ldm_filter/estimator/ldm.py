"""LDMFilter: what users build and fit; what a fitted one answers is in ``queries``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm_filter.data.clips import Clips
from ldm_filter.data.labels import parse
from ldm_filter.estimator import fitting, settings, stages
from ldm_filter.estimator.classical import Classical
from ldm_filter.estimator.clips import drawn
from ldm_filter.estimator.context import fit_context, parse_inputs
from ldm_filter.estimator.options import training_options
from ldm_filter.estimator.readouts import fit_observation_readout
from ldm_filter.estimator.selection import Size, compare_sizes, smallest_good
from ldm_filter.estimator.supervised import NO_TARGETS, Supervised, Targets, attach, build_head, default_weight, labelled_plan, start_encoder
from ldm_filter.models.base import Dynamics
from ldm_filter.types import Context, Sequences

__all__ = ["LDMFilter"]


class LDMFilter(Supervised, Classical):
    """Self-supervised Kalman filtering of time series: a learned encoder in front of an exact linear-Gaussian filter.

        z_t = f(x_t),   h_t = A h_{t-1} + w,  w ~ N(0, Q),   z_t = C h_t + v,  v ~ N(0, R_t)
        maximise  < log P(z_t | z_<t) > + H[z_t]        (alignment + uniformity; arXiv 2605.03517, eq. 13)

    Args:
        state_dim: n, the size of the latent state. A motion that holds k frequencies needs 2 k. ``"auto"``: ``fit`` tries growing sizes for a
            few epochs each and puts in the smallest that is about as good as the best, by the likelihood of held-out data.
        latent_dim: m, the size of the encoder's output; default the state's, at most the number of entries of one observation.
        encoder: ``"auto"``, ``"mlp"``, ``"mlp-noise"`` (which is also shown how noisy an observation is: where the noise depends on the state, that
            tells of the state), ``"conv"``, ``"linear"``, or an ``nn.Module`` from ``(N, *event)`` standardised to ``(N, latent_dim)``.
        dynamics: ``"linear"``: a step per row, and several where the time index has a gap on its grid; ``"continuous"``: a stochastic differential
            equation, for irregular times; ``"locally-linear"``: stable matrices mixed by weights of the state; ``"ekf"``, ``"ukf"``: a residual
            network beside the linear motion, filtered by its tangents or by sigma points; ``"polynomial"``: a cubic law, started by regression.
            The last four are for motions that are not one linear system (full turns, limit cycles, chaos), at about ten times the linear one's time.
            ``"recurrent"``: a GRU predicts the next latent, which is then the state (``latent_dim = state_dim``). It has no posterior: ``filter``
            gives one-step predictions, ``score`` and ``encode`` work, ``smooth`` and longer forecasts are refused. Or a module of your own, a
            :class:`~ldm_filter.models.base.Dynamics`; it is trained in place.
        noise: ``"constant"`` measurement covariance; ``"input"``: a network of the observation, so noisy frames count for less; ``"state"``: a
            network of the predicted state; ``"adaptive"``: a process covariance that grows after surprises; ``"jump"``: at every step a second
            hypothesis, that the state has jumped, with a learned jump: follows at once where ``"adaptive"`` follows one step later.
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
        window: steps of a training window; default up to 100. A filter that is fitted after another latent model sees up to 100 in any case.
        learning_rate: peak rate of the encoder. ``dynamics_rate``: that of the dynamics, as a multiple.
        mask_rate: share of entries hidden at random in training; default 0.1 where single channels are missing in the data, else 0.
        patience: epochs without a lower validation loss after which training stops; None: never. ``"auto"``: 10, and never in a fit with targets
            (whose likelihood is restless until the rates fall). The rates rise over the first third of the epochs, so that a fit with a good start
            may look worse until they fall again: None, or more patience, lets it get there.
        tolerance: nats per step by which a loss must be lower for the patience to begin anew; the weights of the lowest are kept all the same.
        seed: of everything random; the same seed gives the same model bit for bit on one machine.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``. dtype: ``torch.float32`` or ``torch.float64``.
        devices, precision: of Lightning Fabric, for data-parallel and mixed-precision training.
        settle_within: with ``noise="jump"`` and ``dynamics="linear"``, k: after training the process noise of calm steps is raised as far as needed
            for the predicted covariance to be within 5 % of its steady value k steps after a jump. Where an alarm or a controller waits for the
            filter to be sure again; None (default): as sure and as slow as the likelihood of the data has it.

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
        patience: int | str | None = "auto",
        tolerance: float = 0.0,
        seed: int = 0,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        devices: int = 1,
        precision: str | None = None,
        settle_within: int | None = None,
    ) -> None:
        self.state_dim: Any = state_dim
        self.latent_dim, self.encoder, self.dynamics = latent_dim, encoder, dynamics
        self.noise, self.objective, self.latent_model = noise, objective, latent_model
        self.space, self.mutual_information = space, mutual_information
        self.readout, self.transition_cov, self.observation, self.window = readout, transition_cov, observation, window
        self.learning_rate, self.dynamics_rate, self.mask_rate = learning_rate, dynamics_rate, mask_rate
        self.patience: Any = patience
        self.tolerance = tolerance
        self.seed, self.device, self.dtype, self.devices, self.precision = seed, device, dtype, devices, precision
        self.settle_within = settle_within

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
        targets: Any = None,
        validation_targets: Any = None,
        supervision: float | None = None,
        warm_up: int = 0,
        checkpoint: str | Path | None = None,
    ) -> LDMFilter:
        """Train on series, without labels or with some.

        Args:
            data: ndarray ``(time, channel)``, ``(series, time, channel)`` or ``(series, time, y, x[, colour])``, tensor, DataFrame,
                DataArray, Dataset, or a list of them with unequal lengths. NaN means missing. Or :class:`~ldm_filter.data.Clips`, files of video
                whose frames are decoded when a window needs them.
            inputs: known controls and exogenous series, a container like the data with a row per step (matched by time stamp where both have
                one); one series may serve all. They drive the state and the observation: h_t = A h_{t-1} + B u_t + w, z_t = C h_t + D u_t + v.
            validation: held-out data, the share of ``data`` to hold out, or None. validation_inputs: the inputs beside held-out data.
            times: of an array or tensor, its stamps ``(time,)`` in seconds or dates, or one such per series.
            epochs: default 20, more for small data (so that there are 600 updates). batch_size: windows; default up to 32.
            progress: show a bar. log_path: a JSONL file, one line per epoch.
            checkpoint: a file that holds the state of training after every epoch. The same call with the same data goes on from it after an
                interruption, with the same result bit for bit; delete it to start anew.
            compare: names of other estimators; the cosine between their gradients of the encoder and the objective's is logged after every epoch
                (``cosine_knn`` and so on; `ldm_filter.plots.plot_training` draws them).
            targets: physical quantities that the state shall say, a container with a row per step, NaN where unknown: a read-out of the filtered
                belief (mean and full covariance; linear with ``readout="linear"``, else a network) is trained through the filter by their
                likelihood; ``filter`` and ``smooth`` then give ``target_mean`` and ``target_cov``. validation_targets: of held-out data.
            supervision: weight s of the targets in the loss, (1 - s) objective + s (- log p(y_t | x_<=t)); 1: the targets alone. Default 1 where
                every step has targets, else 0.5.
            warm_up: epochs before the first, in which the encoder alone learns to see the targets in single observations. They cost no filtering,
                and where an observation shows the targets, though with noise (images, say), they save many that do.

        Returns:
            self.

        Raises:
            ValueError, TypeError: an argument or the data is not as described; the message says what to change.
            CollapseError: training could not be kept from a collapse.
        """
        settings.check(self.get_params())
        settings.check_counts(epochs=epochs, batch_size=batch_size)
        settings.check_share("validation", validation)
        given = Targets(targets, validation_targets, supervision, warm_up)
        given.check(self.get_params())
        self._forget()
        self.sizes_: list[Size] = []
        if self.state_dim == "auto":
            held = {"validation": validation, "validation_inputs": validation_inputs}
            self.sizes_ = compare_sizes(self, data, inputs=inputs, times=times, epochs=epochs, batch_size=batch_size, **held)
            self.state_dim = smallest_good(self.sizes_)
        self._train(data, inputs, validation, validation_inputs, times, epochs, batch_size, progress, log_path, compare, given, checkpoint)
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
        targets: Targets = NO_TARGETS,
        checkpoint: str | Path | None = None,
    ) -> fitting.Plan:
        """:meth:`fit` with its arguments checked and the size of the state settled; returns how the data were split."""
        lazy = None
        if isinstance(data, Clips):
            beside = {"inputs": inputs, "validation_inputs": validation_inputs, "times": times, "targets": targets.values}
            lazy = drawn(data, validation, self.window, self.seed, self.dtype, **beside)
        sequences, labels = parse(data, min_steps=2, dtype=self.dtype, times=times) if lazy is None else (lazy.training.sequences, lazy.labels)
        self.labels_, self.input_labels_, self.calibration_ = labels, None, None
        if inputs is not None:
            known, self.input_labels_ = parse_inputs(inputs, labels, sequences, None)
            sequences = sequences._replace(context=Context(inputs=known.past))
        sequences, names = attach(sequences, targets.values)
        event_shape = tuple(sequences.values.shape[2:])
        latent_dim = settings.latents(self.get_params(), event_shape)
        settings.check_learnable(sequences, latent_dim)
        input_dim = 0 if self.input_labels_ is None else len(self.input_labels_.channels)
        model = fitting.build(event_shape, self.get_params(), self.encoder, latent_dim, self.dtype, input_dim)
        self.model_ = model
        sequences = fit_context(model.dynamics, sequences, labels)
        if lazy is None:
            given = validation is not None and not isinstance(validation, float)
            held_out = self._held_out(validation, validation_inputs, targets, names) if given else validation
            plan = labelled_plan(fitting.make_plan(sequences, held_out, self.window, batch_size, epochs, self.seed))
        else:
            plan = fitting.plan_of(lazy.training, lazy.validation, batch_size, epochs, self.seed)
        fitting.initialise(model, plan.training.sequences)
        weight = None
        if names:
            start_encoder(model, plan, training_options(self.get_params(), plan.epochs, sequences, progress, None, None), targets.warm_up)
            model.head = build_head(model, plan.training, self.readout, self.seed)
            weight = default_weight(sequences) if targets.weight is None else float(targets.weight)
        square = len(event_shape) == 1 and latent_dim == event_shape[0] and (self.objective != "auto" or fitting.mostly_complete(sequences))
        objective = settings.composition(self.get_params(), square).objective
        options = training_options(self.get_params(), plan.epochs, sequences, progress, log_path, weight)
        compared = settings.comparisons(self.get_params(), square, compare)
        self.history_ = stages.train(model, objective, plan, replace(options, compare=compared, checkpoint_path=checkpoint))
        if model.predictor is not None:
            plan = stages.fit_dynamics(model, plan, options, self.history_)
        fitting.finish(model.eval(), plan)
        self.target_readout_ = None if model.head is None else model.head.requires_grad_(False)
        self.target_names_ = names
        model.head = None
        self.readout_ = fit_observation_readout(model, plan, self.readout, self.seed)
        return plan

    def _held_out(self, validation: Any, inputs: Any, targets: Targets, names: list[str]) -> Sequences:
        sequences = self._read(validation, inputs, name="validation")[0]
        if targets.values is not None and targets.validation is None:
            raise ValueError("validation is held-out data, but validation_targets is None; pass its targets, or a share of the data as validation")
        return attach(sequences, targets.validation, "validation_targets", names)[0]
