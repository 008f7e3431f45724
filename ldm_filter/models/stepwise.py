"""Dynamics that are filtered step by step, because motion or noise depends on the state: what all of them share."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_filter.core import kalman, nonlinear
from ldm_filter.core.linearisation import Linearise, Transition, linear
from ldm_filter.core.nonlinear import NonlinearStateSpace
from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.base import NO_CONTEXT, Dynamics
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.noise import AdaptiveProcessNoise, StateNoise
from ldm_filter.types import Context, FilterResult, Gaussian, StateSpace

__all__ = ["StepwiseDynamics"]


class StepwiseDynamics(Dynamics):
    """Linear dynamics whose noise follows the state or past innovations; the base of dynamics that are not linear.

        h_t = f(h_{t-1}) + w_t,  w_t ~ N(0, Q + D(innovations before t)),     z_t = C h_t + c + v_t,  v_t ~ N(0, s(h^-_t) R_t s(h^-_t))

    Observation, first belief, Q and the linear part of the motion are those of ``base``, which is also where training starts: f is linear,
    D small and s one. The state keeps the basis in which it was started; there is no canonical form of a nonlinear model.

    Args:
        base: the linear model.
        adaptive: D; None: 0.
        state_noise: s; None: 1.

    Raises:
        ValueError: noise for another number of states or latents than the base has.
    """

    def __init__(self, base: AffineDynamics, adaptive: AdaptiveProcessNoise | None = None, state_noise: StateNoise | None = None) -> None:
        super().__init__()
        if adaptive is not None and adaptive.state_dim != base.state_dim:
            raise ValueError(f"adaptive is for {adaptive.state_dim} states, base has {base.state_dim}; use one state_dim for both")
        if state_noise is not None and (state_noise.state_dim, state_noise.latent_dim) != (base.state_dim, base.latent_dim):
            found, sizes = (state_noise.state_dim, state_noise.latent_dim), (base.state_dim, base.latent_dim)
            raise ValueError(f"state_noise is for (state_dim, latent_dim) {found}, base has {sizes}; use the same for both")
        self.base, self.adaptive, self.state_noise = base, adaptive, state_noise
        self.state_dim, self.latent_dim, self.learned_observation = base.state_dim, base.latent_dim, base.learned_observation
        self.input_dim, self.uses_time = base.input_dim, base.uses_time

    def motion(self, exact: StateSpace, context: Context) -> tuple[Transition, Linearise]:
        """How the state moves and what stands for it at a belief, given the linear model in float64; here the linear model itself."""
        return linear(exact)

    def state_space(self, context: Context = NO_CONTEXT) -> NonlinearStateSpace:  # type: ignore[override]
        """The model at the steps of a context, for :mod:`ldm_filter.core.kalman`."""
        ssm = self.base.state_space(context)
        return NonlinearStateSpace(
            *self.motion(self.base.exact(context), context),
            ssm.observation_matrix,
            ssm.observation_offset,
            ssm.initial,
            None if self.state_noise is None else self.state_noise.scales(),
            None if self.adaptive is None else self.adaptive.rules(),
        )

    def filter(
        self,
        measurements: Gaussian,
        observed: Tensor | None = None,
        context: Context = NO_CONTEXT,
        initial: Gaussian | None = None,
        memory: Tensor | None = None,
    ) -> FilterResult:
        """Predicted, filtered and projected beliefs and the log-likelihood; ``memory`` ``(B, k)`` as of :meth:`remember`."""
        model = self._with_memory(self.state_space(context), memory)
        return nonlinear.filter_sequence(model if initial is None else model._replace(initial=initial), measurements, observed)

    def predict(self, belief: Gaussian, context: Context = NO_CONTEXT, memory: Tensor | None = None) -> Gaussian:
        """One step ahead of a belief ``(B, n)``; without a ``memory`` the adaptive noise is calm, as at the start of a series."""
        return nonlinear.predict(self._with_memory(self.state_space(context), memory), belief)

    def forecast(self, belief: Gaussian, horizon: int, context: Context = NO_CONTEXT, memory: Tensor | None = None) -> Gaussian:
        """The states 1 to ``horizon`` steps after a belief ``(B, n)``."""
        return nonlinear.forecast(self._with_memory(self.state_space(context), memory), belief, horizon)

    def update(
        self, predicted: Gaussian, measurement: Gaussian, observed: Tensor | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Gaussian, Tensor]:
        """Condition a prediction on one measurement; R is scaled as the predicted state has it."""
        fields = self.base.at_step(context, predicted.mean.dtype)
        measurement = measurement._replace(cov=self._scaled(predicted, measurement.cov))
        return kalman.update(predicted, measurement, fields.observation_matrix, fields.observation_offset, observed)

    def project(self, belief: Gaussian, measurement_cov: Tensor, context: Context = NO_CONTEXT) -> Gaussian:
        """The measurement that a belief predicts, including its noise."""
        fields = self.base.at_step(context, belief.mean.dtype)
        return kalman.project(belief, fields.observation_matrix, fields.observation_offset, self._scaled(belief, measurement_cov))

    @torch.no_grad()
    def mean_transition(self, result: FilterResult, context: Context = NO_CONTEXT) -> Tensor:
        """The mean of A over the steps of a run."""
        ssm = nonlinear.linearised(self.state_space(context), result)
        return ssm.transition_matrix[:, 1:].mean((0, 1)) if result.filtered.mean.shape[1] > 1 else self.base.state_space().transition_matrix

    def remember(self, measurements: Gaussian, observed: Tensor | None, result: FilterResult, memory: Tensor | None = None) -> Tensor | None:
        """What the adaptive noise has to know after each step of a filtered piece to go on from there, ``(B, T, k)``; None: nothing.

        Args:
            measurements, observed, result: of the piece. memory: that it was filtered with.
        """
        adaptive = self._with_memory(self.state_space(), memory).adaptive
        return None if adaptive is None else nonlinear.memories(adaptive, measurements, observed, result)

    def start_from(self, ssm: StateSpace, interval: float = 1.0) -> None:
        """Take up a linear model as the start of training: the filter is then exactly that of the linear model, but for a little process noise."""
        self.base.start_from(ssm, interval)
        cov = self.base.state_space().initial.cov
        for part in (self.adaptive, self.state_noise):
            if part is not None:
                part.set_scale(cov)

    def set_interval(self, seconds: float) -> None:
        """As of the base."""
        self.base.set_interval(seconds)

    def set_input_scale(self, mean: Tensor, std: Tensor) -> None:
        """As of the base."""
        self.base.set_input_scale(mean, std)

    def standardise(self, inputs: Tensor | None) -> Tensor | None:
        """As of the base."""
        return self.base.standardise(inputs)

    @torch.no_grad()
    def health(self) -> dict[str, float]:
        """That of the linear part."""
        return self.base.health()

    @torch.no_grad()
    def centre(self) -> Tensor:
        """The origin stays where it is: zeros ``(m,)``."""
        return torch.zeros_like(self.base.state_space().observation_offset)

    def rescale_latents(self, mean: Tensor, std: Tensor) -> None:
        """C <- C / std, c <- (c - mean) / std: the noise of the state is relative to R, and stays."""
        self.base.rescale_latents(mean, std)

    @torch.no_grad()
    def scale_covariances(self, factor: float) -> bool:
        """Q <- factor Q, P_0 <- factor P_0, where all that depends on the belief depends on its mean alone: not with adaptive noise."""
        return self.adaptive is None and isinstance(self.base, LinearDynamics) and self.base.scale_covariances(factor)

    @torch.no_grad()
    def canonicalise(self) -> Tensor:
        """The basis stays as it is: the identity ``(n, n)``."""
        return torch.eye(self.state_dim, dtype=torch.float64, device=self.base.mean.device)

    def _scaled(self, belief: Gaussian, cov: Tensor) -> Tensor:
        if self.state_noise is None:
            return cov
        scale = self.state_noise.scales()(belief.mean).to(cov.dtype)
        return scale.unsqueeze(-1) * cov * scale.unsqueeze(-2)

    def _with_memory(self, model: NonlinearStateSpace, memory: Tensor | None) -> NonlinearStateSpace:
        if model.adaptive is None or memory is None:
            return model
        return model._replace(adaptive=model.adaptive._replace(memory=memory))
