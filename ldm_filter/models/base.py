"""What a latent filter asks of its dynamics, answered for everything that yields a state-space model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm_filter.core import kalman
from ldm_filter.core.smoothing import sample_posterior, smooth_sequence
from ldm_filter.types import Context, FilterResult, Gaussian, SmootherResult, StateSpace

__all__ = ["NO_CONTEXT", "Dynamics", "Fields"]

NO_CONTEXT = Context()


class Fields(NamedTuple):
    """The fields of a :class:`~ldm_filter.types.StateSpace` at one step, in one dtype, each ``(..., event)``."""

    transition_matrix: Tensor
    transition_offset: Tensor
    transition_cov: Tensor
    observation_matrix: Tensor
    observation_offset: Tensor


class Dynamics(nn.Module):
    """Latent dynamics: they decide how sequences of measurements are filtered, smoothed and continued.

    A kind of dynamics that is linear-Gaussian given the context (constant, sampled in continuous time, driven by inputs) implements
    :meth:`state_space` and inherits the rest, which is the exact Kalman filter. Any other kind overrides :meth:`initial`, :meth:`filter`,
    :meth:`moments`, :meth:`smooth`, :meth:`predict`, :meth:`update`, :meth:`forecast`, :meth:`prior_paths` and :meth:`posterior_paths`.

    Attributes:
        state_dim, latent_dim: n and m.
        learned_observation: whether the dynamics can take up a change of basis of state and latents (:meth:`centre`, :meth:`rescale_latents`,
            :meth:`canonicalise`); where not, those steps are left out after training.
        input_dim: number of inputs that the dynamics take.
        recalls: whether :meth:`update`, too, takes the memory of :meth:`remember`.
        uses_time: ``"any"`` time steps, only those on a ``"grid"`` of whole sampling intervals (else all count as one), or ``"no"``.

    Shapes:
        measurements: mean ``(B, T, m)``, cov ``(1 | B, 1 | T, m, m)``. observed: bool ``(B, T)``, or ``(B, T, m)`` per latent.
        context: of the same T steps. Its dt at index 0 plays no part: the initial belief is the prediction for the first row.
    """

    state_dim: int
    latent_dim: int
    learned_observation: bool = False
    input_dim: int = 0
    recalls: bool = False
    uses_time: str = "no"

    def state_space(self, context: Context = NO_CONTEXT) -> StateSpace:
        """The model at the steps of a context, in the parameters' dtype; constant fields where it does not vary."""
        raise NotImplementedError(f"{type(self).__name__} yields no state-space model; it must implement the methods of Dynamics itself")

    def forward(self, context: Context = NO_CONTEXT) -> StateSpace:
        """As :meth:`state_space`; without a context the model of one regular step."""
        return self.state_space(context)

    def initial(self) -> Gaussian:
        """p(h_0) before any observation, mean ``(n,)``, cov ``(n, n)``."""
        return self.state_space().initial

    # ------------------------------------------------------------------------------------------------------ whole sequences

    def filter(
        self, measurements: Gaussian, observed: Tensor | None = None, context: Context = NO_CONTEXT, initial: Gaussian | None = None
    ) -> FilterResult:
        """Predicted, filtered and projected beliefs and the log-likelihood; ``initial``: the prediction for the first row, if not the model's own."""
        return kalman.filter_sequence(self._started(context, initial), measurements, observed)

    def moments(
        self, measurements: Gaussian, observed: Tensor | None = None, context: Context = NO_CONTEXT, initial: Gaussian | None = None
    ) -> tuple[Gaussian, Tensor]:
        """Filtered beliefs and log-likelihood ``(B, T)`` only."""
        return kalman.filter_moments(self._started(context, initial), measurements, observed)

    def smooth(self, result: FilterResult, context: Context = NO_CONTEXT) -> SmootherResult:
        """Beliefs given all of the series, from what :meth:`filter` returned for the same context."""
        return smooth_sequence(self.state_space(context), result)

    def forecast(self, belief: Gaussian, horizon: int, context: Context = NO_CONTEXT) -> Gaussian:
        """The states 1 to ``horizon`` steps after a belief ``(B, n)``; the context is that of the future steps, all of its dt count."""
        return kalman.forecast(self.state_space(context), belief, horizon)

    def prior_paths(
        self, steps: int, generator: torch.Generator, num_paths: int = 1, context: Context = NO_CONTEXT, initial: Gaussian | None = None
    ) -> Tensor:
        """Draws of the state from the model alone, ``(num_paths, b, T, n)``, or from a belief about the first of the steps."""
        return kalman.sample_paths(self._started(context, initial), steps, generator, num_paths)

    def posterior_paths(self, result: FilterResult, generator: torch.Generator, num_paths: int = 1, context: Context = NO_CONTEXT) -> Tensor:
        """Draws of the state given the whole series, ``(num_paths, B, T, n)``."""
        return sample_posterior(self.state_space(context), result, generator, num_paths)

    # ------------------------------------------------------------------------------------------------------------- one step

    def predict(self, belief: Gaussian, context: Context = NO_CONTEXT) -> Gaussian:
        """One step ahead of a belief ``(B, n)``, in its dtype; the context is that of the one step, ``dt (1 | B, 1)``, ``inputs (1 | B, 1, u)``."""
        fields = self.at_step(context, belief.mean.dtype)
        return kalman.predict(belief, fields.transition_matrix, fields.transition_offset, fields.transition_cov)

    def update(
        self, predicted: Gaussian, measurement: Gaussian, observed: Tensor | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Gaussian, Tensor]:
        """Condition a prediction ``(B, n)`` on one measurement ``(B, m)``: the filtered belief and the log-density ``(B,)``."""
        fields = self.at_step(context, predicted.mean.dtype)
        return kalman.update(predicted, measurement, fields.observation_matrix, fields.observation_offset, observed)

    def project(self, belief: Gaussian, measurement_cov: Tensor, context: Context = NO_CONTEXT) -> Gaussian:
        """The measurement that a belief ``(B, n)`` predicts, including its noise R."""
        fields = self.at_step(context, belief.mean.dtype)
        return kalman.project(belief, fields.observation_matrix, fields.observation_offset, measurement_cov)

    def at_step(self, context: Context, dtype: torch.dtype) -> Fields:
        """The model's fields at the one step of a context, without a time dimension."""
        ssm = self.state_space(context)
        events = (2, 1, 2, 2, 1)
        return Fields(*(part.to(dtype) if part.ndim == event else part[:, 0].to(dtype) for part, event in zip(ssm[:-1], events, strict=True)))

    def mean_transition(self, result: FilterResult, context: Context = NO_CONTEXT) -> Tensor:
        """A over one regular step ``(n, n)``, whose eigenvalues are the modes of the motion; where it varies with the state, its mean along a run."""
        return self.state_space().transition_matrix

    def remember(self, measurements: Gaussian, observed: Tensor | None, result: FilterResult, memory: Tensor | None = None) -> Tensor | None:
        """What has to be known besides the filtered belief to go on after each step of a piece, ``(B, T, k)``; None, the default: nothing.

        Where it is not None, :meth:`filter`, :meth:`predict` and :meth:`forecast` take the ``memory`` ``(B, k)`` of one step as a last argument.
        """
        return None

    # ---------------------------------------------------------------------------------------------- training and its end

    def start_from(self, ssm: StateSpace, interval: float = 1.0) -> None:
        """Take up a linear model as the start of training, as well as this kind of dynamics can; default: not at all.

        Args:
            ssm: constant fields, the model of one row.
            interval: mean distance of the rows that it was found from, in sampling intervals.
        """

    def set_interval(self, seconds: float) -> None:
        """What one sampling interval is in the unit of the contexts' dt; of no interest where time is not used."""

    def set_input_scale(self, mean: Tensor, std: Tensor) -> None:
        """Standardise inputs ``(u,)`` by these; only called where ``input_dim`` is not 0."""

    def standardise(self, inputs: Tensor | None) -> Tensor | None:
        """Inputs in the units that the model works in; None where it has none."""
        return None

    def health(self) -> dict[str, float]:
        """Figures that training logs after every epoch; all of them finite."""
        return {}

    def centre(self) -> Tensor:
        """Move the origin of the state so that neither the transition nor the observation has an offset; returns the latents' level ``(m,)``."""
        raise ValueError(f'{type(self).__name__} cannot move its origin; it needs observation="learned"')

    def rescale_latents(self, mean: Tensor, std: Tensor) -> None:
        """Fold z <- (z - mean) / std into the observation model."""
        raise ValueError(f'the gauge needs observation="learned"; a fixed [I 0] holds the scale already ({type(self).__name__})')

    def scale_covariances(self, factor: float) -> bool:
        """Multiply Q and the initial covariance by a factor; returns False, with nothing changed, where this kind of dynamics cannot."""
        return False

    def canonicalise(self) -> Tensor:
        """Bring the state to its canonical form; returns T ``(n, n)``, new state = T old state."""
        raise ValueError(
            f'the canonical form needs observation="learned"; a fixed [I 0] holds the basis of the state already ({type(self).__name__})'
        )

    def _started(self, context: Context, initial: Gaussian | None) -> StateSpace:
        ssm = self.state_space(context)
        return ssm if initial is None else ssm._replace(initial=initial)
