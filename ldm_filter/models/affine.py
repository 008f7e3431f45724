"""What linear-Gaussian dynamics of every kind share: means, the first belief, the observation, and how inputs come in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_filter.core.discretise import Steps
from ldm_filter.core.linalg import matvec, round_cov
from ldm_filter.models.base import NO_CONTEXT, Dynamics
from ldm_filter.models.factors import factor
from ldm_filter.types import Context, Gaussian, StateSpace

__all__ = ["AffineDynamics"]

# Time steps that differ by less than this share of a sampling interval are one.
SAME = 10


class AffineDynamics(Dynamics):
    """h_t = A_t (h_{t-1} - b) + b + G_t B u_t + w_t,   z_t = C h_t + c + D u_t + v_t, with standardised inputs u.

    A subclass gives A, Q and G, the integral of A over the step, for one sampling interval and for steps of any length: :meth:`steps`.

    Args:
        state_dim: n.
        latent_dim: m <= n.
        transition_cov: ``"full"`` or ``"diagonal"`` Q.
        observation: ``"selector"`` for C = [I 0] or ``"learned"``.
        input_dim: u, the number of inputs.
        generator: source of the starting values.

    Raises:
        ValueError: a size or name out of range.
    """

    observation: Tensor
    observation_offset: Tensor
    initial_mean: Tensor
    input_matrix: Tensor
    feedthrough: Tensor
    input_mean: Tensor
    input_scale: Tensor
    interval: float  # of time, in the unit of the contexts' dt

    def __init__(
        self, state_dim: int, latent_dim: int, transition_cov: str, observation: str, input_dim: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.state_dim, self.latent_dim, self.input_dim = state_dim, latent_dim, input_dim
        self.full_cov, self.learned_observation = transition_cov == "full", observation == "learned"
        n, m = state_dim, latent_dim
        self.mean = nn.Parameter(torch.zeros(n))
        self.cov_factor = nn.Parameter(torch.full((n,), -1.5) if transition_cov == "diagonal" else torch.diag(torch.full((n,), -1.5)))
        self.initial_mean = nn.Parameter(torch.zeros(n))
        self.initial_factor = nn.Parameter(torch.zeros(n, n))
        selector = torch.eye(m, n)
        if self.learned_observation:
            spread = torch.randn(m, n, generator=generator) / n**0.5
            self.observation = nn.Parameter(torch.cat([selector[:, :m], spread[:, m:]], dim=-1))
        else:
            self.register_buffer("observation", selector)
        self.register_buffer("observation_offset", torch.zeros(m))
        self.interval = 1.0
        if input_dim:
            self.input_matrix = nn.Parameter(torch.zeros(n, input_dim))
            self.feedthrough = nn.Parameter(torch.zeros(m, input_dim))
            self.register_buffer("input_mean", torch.zeros(input_dim))
            self.register_buffer("input_scale", torch.ones(input_dim))

    def steps(self, distance: Tensor | None) -> Steps:
        """A, its integral and Q over distances ``(U,)`` in sampling intervals, or over one interval (None: ``(n, n)`` each), in float64."""
        raise NotImplementedError

    def state_space(self, context: Context = NO_CONTEXT) -> StateSpace:
        """The model as a :class:`~ldm_filter.types.StateSpace`, in the parameters' dtype: constant fields without time steps and inputs.

        Raises:
            ValueError: the inputs are not those that the model was built for.
        """
        exact, dtype = self.exact(context), self.initial_mean.dtype
        return StateSpace(
            transition_matrix=exact.transition_matrix.to(dtype),
            transition_offset=exact.transition_offset.to(dtype),
            transition_cov=round_cov(exact.transition_cov, dtype),
            observation_matrix=exact.observation_matrix.to(dtype),
            observation_offset=exact.observation_offset.to(dtype),
            initial=Gaussian(exact.initial.mean.to(dtype), round_cov(exact.initial.cov, dtype)),
        )

    def exact(self, context: Context = NO_CONTEXT) -> StateSpace:
        """The same in float64, whatever the parameters' dtype: products of factors lose half of the digits.

        No field is a parameter itself: what is returned stays what it is when the parameters change.
        """
        steps, mean = self._steps_of(context.dt), self.mean.double()
        offset, level = mean - matvec(steps.transition, mean), self.observation_offset.to(torch.float64, copy=True)
        inputs = self.standardise(context.inputs)
        if inputs is not None:
            offset = offset + matvec(steps.held, inputs @ self.input_matrix.double().mT)
            level = level + inputs @ self.feedthrough.double().mT
        initial = factor(self.initial_factor)
        return StateSpace(
            transition_matrix=steps.transition,
            transition_offset=offset,
            transition_cov=steps.cov,
            observation_matrix=self.observation.to(torch.float64, copy=True),
            observation_offset=level,
            initial=Gaussian(self.initial_mean.to(torch.float64, copy=True), initial @ initial.mT),
        )

    def noise_cov(self) -> Tensor:
        """The covariance that ``cov_factor`` stands for, ``(n, n)`` float64."""
        root = torch.diag(factor(self.cov_factor)) if self.cov_factor.ndim == 1 else factor(self.cov_factor)
        return root @ root.mT

    def set_interval(self, seconds: float) -> None:
        """The sampling interval of the training data, in the unit of the contexts' dt: the unit of time inside the model.

        Raises:
            ValueError: not positive and finite.
        """
        if not 0.0 < seconds < float("inf"):
            raise ValueError(f"seconds is {seconds}, expected a positive finite sampling interval")
        self.interval = float(seconds)

    def get_extra_state(self) -> Tensor:
        """The interval, which a change of dtype must not round."""
        return torch.tensor(self.interval, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the interval back from a state dict."""
        self.interval = float(state)

    @torch.no_grad()
    def set_input_scale(self, mean: Tensor, std: Tensor) -> None:
        """Standardise inputs ``(u,)`` by these; a constant input has std 1, not 0."""
        self.input_mean.copy_(mean)
        self.input_scale.copy_(std)

    @torch.no_grad()
    def centre(self) -> Tensor:
        """h <- h - b, z <- z - (C b + c); returns C b + c."""
        level = self.observation.double() @ self.mean.double() + self.observation_offset.double()
        self.initial_mean.sub_(self.mean)
        self.mean.zero_()
        self.observation_offset.zero_()
        return level.to(self.mean.dtype)

    @torch.no_grad()
    def rescale_latents(self, mean: Tensor, std: Tensor) -> None:
        """C <- C / std, c <- (c - mean) / std, D <- D / std."""
        if not self.learned_observation:
            super().rescale_latents(mean, std)
        self.observation.div_(std[:, None])
        self.observation_offset.sub_(mean).div_(std)
        if self.input_dim:
            self.feedthrough.div_(std[:, None])

    def _move_inputs(self, transform: Tensor) -> None:
        """B <- T B, where the state becomes T h."""
        if self.input_dim:
            self.input_matrix.copy_(transform @ self.input_matrix.double())

    def _steps_of(self, dt: Tensor | None) -> Steps:
        """The transitions into the steps of a context: ``(n, n)`` where they are all alike, else ``(1 | B, T, n, n)``."""
        if dt is None:
            return self.steps(None)
        distance, place = torch.unique((dt.double() / self.interval).round(decimals=SAME), return_inverse=True)
        if not bool((distance > 0).all()):
            raise ValueError(f"context.dt has a time step of {float(dt.min()):g}, expected positive ones")
        if len(distance) == 1:
            return self.steps(None) if float(distance) == 1.0 else Steps(*(part[0] for part in self.steps(distance)))
        return Steps(*(part[place] for part in self.steps(distance)))

    def standardise(self, inputs: Tensor | None) -> Tensor | None:
        """Inputs ``(..., u)`` in units of their standard deviation, in float64.

        Raises:
            ValueError: inputs for a model without, or of another size than in the fit.
        """
        if inputs is None or not self.input_dim:
            if inputs is not None:
                raise ValueError(f"inputs of shape {tuple(inputs.shape)} are given, but the model has none; leave inputs out")
            return None
        if inputs.shape[-1] != self.input_dim:
            raise ValueError(f"inputs have shape {tuple(inputs.shape)}, expected {self.input_dim} at the end, as in the fit")
        return (inputs.double() - self.input_mean.double()) / self.input_scale.double()
