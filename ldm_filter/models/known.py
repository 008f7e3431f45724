"""Models whose matrices somebody knows: nothing to learn, and the observation is the measurement itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_filter.core.discretise import Steps, power_steps
from ldm_filter.core.linalg import matvec
from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.base import NO_CONTEXT, Dynamics
from ldm_filter.models.encoders import Encoder
from ldm_filter.types import Context, Gaussian, StateSpace

__all__ = ["DirectEncoder", "KnownDynamics"]


class DirectEncoder(Encoder):
    """z = x with a known covariance R; a missing channel is left out of the update alone, exactly.

    Args:
        measurement_cov: R, ``(m, m)``.
    """

    channelwise = True
    measurement_cov: Tensor

    def __init__(self, measurement_cov: Tensor) -> None:
        nn.Module.__init__(self)  # none of the parts of a learned encoder
        size = len(measurement_cov)
        self.event_shape, self.latent_dim = (size,), size
        self.register_buffer("measurement_cov", measurement_cov.clone())
        self.register_buffer("center", torch.zeros_like(measurement_cov[0]))
        self.register_buffer("scale", torch.ones_like(measurement_cov[0]))

    def forward(self, values: Tensor, observed: Tensor) -> Gaussian:
        return Gaussian(values, self.measurement_cov[None, None])


class KnownDynamics(AffineDynamics):
    """h_t = A h_{t-1} + a + B u_t + w,  z_t = C h_t + c + D u_t + v with given matrices, stable or not; buffers, not parameters.

    Args:
        ssm: constant fields.
        input_matrix: B, ``(n, u)``. feedthrough: D, ``(m, u)``. Default: no inputs.
    """

    uses_time = "grid"
    transition: Tensor
    offset: Tensor
    cov: Tensor
    initial_cov: Tensor

    def __init__(self, ssm: StateSpace, input_matrix: Tensor | None = None, feedthrough: Tensor | None = None) -> None:
        Dynamics.__init__(self)
        (m, n), like = ssm.observation_matrix.shape, ssm.transition_matrix
        given = [part for part in (input_matrix, feedthrough) if part is not None]
        self.state_dim, self.latent_dim, self.input_dim = n, m, given[0].shape[-1] if given else 0
        self.full_cov, self.learned_observation, self.interval = True, False, 1.0
        inputs = {
            "input_matrix": like.new_zeros(n, self.input_dim) if input_matrix is None else input_matrix,
            "feedthrough": like.new_zeros(m, self.input_dim) if feedthrough is None else feedthrough,
            "input_mean": like.new_zeros(self.input_dim),
            "input_scale": like.new_ones(self.input_dim),
        }
        matrices = {"transition": like, "offset": ssm.transition_offset, "cov": ssm.transition_cov, "observation": ssm.observation_matrix}
        matrices |= {"observation_offset": ssm.observation_offset, "initial_mean": ssm.initial.mean, "initial_cov": ssm.initial.cov}
        for name, value in (matrices | inputs).items():
            self.register_buffer(name, value.clone())

    def steps(self, distance: Tensor | None) -> Steps:
        """As of :class:`~ldm_filter.models.dynamics.LinearDynamics`; distances are rounded to whole steps."""
        if distance is None:
            return Steps(self.transition.double(), torch.eye(self.state_dim).to(self.transition).double(), self.cov.double())
        return power_steps(self.transition, self.cov, distance.round().clamp_min(1.0).long())

    def exact(self, context: Context = NO_CONTEXT) -> StateSpace:
        """The matrices in float64."""
        steps = self._steps_of(context.dt)
        push, level = self.offset.double(), self.observation_offset.to(torch.float64, copy=True)
        inputs = self.standardise(context.inputs)
        if inputs is not None:
            push = push + inputs @ self.input_matrix.double().mT
            level = level + inputs @ self.feedthrough.double().mT
        return StateSpace(
            transition_matrix=steps.transition,
            transition_offset=matvec(steps.held, push),
            transition_cov=steps.cov,
            observation_matrix=self.observation.to(torch.float64, copy=True),
            observation_offset=level,
            initial=Gaussian(self.initial_mean.to(torch.float64, copy=True), self.initial_cov.to(torch.float64, copy=True)),
        )
