"""Learned dynamics that are not linear, started at the linear ones: mixed stable matrices, and a bounded residual."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm_filter.core.linalg import matvec
from ldm_filter.core.linearisation import Affine, Linearise, Step, Transition, linear, mixture, repeated, sigma_point, unscented
from ldm_filter.core.nonlinear import NonlinearStateSpace
from ldm_filter.models.base import NO_CONTEXT
from ldm_filter.models.dynamics import LinearDynamics, stable_matrix, whole_intervals
from ldm_filter.models.networks import random_layer
from ldm_filter.models.noise import AdaptiveProcessNoise, StateNoise
from ldm_filter.models.stepwise import StepwiseDynamics
from ldm_filter.types import Context, Gaussian, StateSpace

__all__ = ["LocallyLinearDynamics", "NonlinearDynamics", "RegularDynamics", "Residual"]

METHODS = ("ekf", "ukf")
# Logarithm of the largest factor on the process noise's standard deviations, softly kept.
MOST_UNREST = 4.0


class RegularDynamics(StepwiseDynamics):
    """Nonlinear motion over one sampling interval; over several, it is that many steps."""

    base: LinearDynamics

    def state_space(self, context: Context = NO_CONTEXT) -> NonlinearStateSpace:  # type: ignore[override]
        """The model at the steps of a context: a row k intervals after the one before is predicted in k steps, with the inputs held.

        Raises:
            ValueError: a distance that is no whole number of sampling intervals, within a tenth.
        """
        model = super().state_space(context._replace(dt=None))
        if context.dt is None:
            return model
        counts = whole_intervals(context.dt.to(model.observation_offset.device) / self.base.interval, self.base.interval)
        if int(counts.max()) == 1:
            return model
        move, linearise = repeated(model.transition, model.linearise, counts)
        return model._replace(transition=move, linearise=linearise)


class LocallyLinearDynamics(RegularDynamics):
    """h_t = A(h) h_{t-1} + a(h) + w,   A = sum_k w_k(h) A_k,   a = sum_k w_k(h) a_k,   the weights taken at the state's mean.

    w ~ N(0, d(h) Q d(h)),   d = diag exp(sum_k w_k(h) s_k): the linear view errs more in some places than in others. At the start s = 0.

    Every A_k is stable, by the parametrisation of :class:`~ldm_filter.models.dynamics.LinearDynamics` in one basis common to all. In that
    basis all of them are contractions, so every mixture is one: the motion is stable for every value of the parameters, however the
    weights move. At the start all A_k are the linear A.

    Args:
        base: the linear model. bases: K. hidden: width of the network of the weights.
        adaptive, state_noise: as of :class:`~ldm_filter.models.stepwise.StepwiseDynamics`.
        generator: source of the starting values.

    Raises:
        ValueError: fewer than one matrix.

    Source:
        P. Becker et al., *Recurrent Kalman Networks*, ICML 2019, section 3; the stability is this project's.
    """

    spread: Tensor

    def __init__(
        self,
        base: LinearDynamics,
        bases: int = 8,
        hidden: int = 32,
        adaptive: AdaptiveProcessNoise | None = None,
        state_noise: StateNoise | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, adaptive, state_noise)
        if bases < 1:
            raise ValueError(f"bases is {bases}, expected at least 1 matrix")
        n = base.state_dim
        self.contraction_change = nn.Parameter(torch.zeros(bases, n, n))
        self.slack_change = nn.Parameter(torch.zeros(bases, n))
        self.push = nn.Parameter(torch.zeros(bases, n))
        self.unrest = nn.Parameter(torch.zeros(bases, n))
        self.weigh = nn.Sequential(random_layer(n, hidden, generator), nn.Tanh(), random_layer(hidden, bases, generator, gain=3.0))
        self.register_buffer("spread", torch.ones(n))

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A_k ``(K, n, n)`` and a_k ``(K, n)``, float64."""
        base = self.base
        matrices = stable_matrix(base.contraction + self.contraction_change, base.slack + self.slack_change, base.basis)
        mean = base.mean.double()
        return matrices, mean - matvec(matrices, mean.expand(len(matrices), -1)) + self.push.double()

    def motion(self, exact: StateSpace, context: Context) -> tuple[Transition, Linearise]:
        """The mixture; what inputs add to the linear model's offset they add to every one of the K."""
        matrices, offsets = self.matrices()

        def weights(state: Tensor, step: Step) -> Tensor:
            return self.weigh(state.to(self.spread.dtype) / self.spread).softmax(-1)

        move, mix = mixture(matrices, offsets, exact.transition_cov, weights, MOST_UNREST * torch.tanh(self.unrest.double() / MOST_UNREST))
        if exact.transition_offset.dim() == 1:
            return move, mix
        pushed = exact._replace(
            transition_matrix=torch.zeros_like(matrices[0]), transition_offset=exact.transition_offset - self.base.exact().transition_offset
        )
        inputs = linear(pushed)[1]

        def transition(state: Tensor, step: Step) -> Gaussian:
            mean, cov = move(state, step)
            return Gaussian(mean + inputs(Gaussian(state, cov), step).offset, cov)

        def linearise(belief: Gaussian, step: Step) -> Affine:
            mixed = mix(belief, step)
            return mixed._replace(offset=mixed.offset + inputs(belief, step).offset)

        return transition, linearise

    def start_from(self, ssm: StateSpace, interval: float = 1.0) -> None:
        super().start_from(ssm, interval)
        with torch.no_grad():
            self.spread.copy_(self.base.state_space().initial.cov.diagonal().clamp_min(1e-12).sqrt())

    @torch.no_grad()
    def health(self) -> dict[str, float]:
        """The largest spectral radius of the A_k."""
        return {"radius": float(torch.linalg.eigvals(self.matrices()[0]).abs().max())}


class NonlinearDynamics(RegularDynamics):
    """h_t = A h_{t-1} + a + g(h_{t-1}, u_t) + w: a stable linear part and a bounded residual network.

    Two bounds hold for every value of the parameters, in units of the state's standard deviations at the start:

    - |g_i| < ``bound``, so that paths stay bounded: A is a contraction in some basis, and what is added at a step is limited.
    - g has a Lipschitz constant of at most ``lipschitz`` (its layers are scaled to that, by their spectral norms), so that a linearised
      covariance cannot grow faster than by (|A| + lipschitz)^2 a step, and training not on gradients that explode.

    At the start g = 0: the filter is the linear one.

    Args:
        base: the linear model.
        method: ``"ekf"``: tangents, by forward-mode differentiation; ``"ukf"``: sigma points, unscented with kappa = 3 - n, from three states on
            the cubature rule. Points see how g bends under a wide belief, tangents are cheaper.
        hidden: widths of the residual's hidden layers. bound, lipschitz: see above.
        adaptive, state_noise: as of :class:`~ldm_filter.models.stepwise.StepwiseDynamics`.
        generator: source of the starting values.

    Raises:
        ValueError: an unknown method, or a bound that is not positive.
    """

    def __init__(
        self,
        base: LinearDynamics,
        method: str = "ekf",
        hidden: tuple[int, ...] = (64, 64),
        bound: float = 1.0,
        lipschitz: float = 4.0,
        adaptive: AdaptiveProcessNoise | None = None,
        state_noise: StateNoise | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, adaptive, state_noise)
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, expected one of {', '.join(map(repr, METHODS))}")
        self.method = method
        self.residual = Residual(base.state_dim, base.input_dim, hidden, bound, lipschitz, generator)

    def motion(self, exact: StateSpace, context: Context) -> tuple[Transition, Linearise]:
        """The linear model and the residual, its weights normalised once for the whole sequence."""
        straight, tangent = linear(exact)
        bend, given = self.residual.normalised(), self.standardise(context.inputs)

        def known(step: Step) -> Tensor | None:
            return None if given is None else given[:, step]

        def transition(state: Tensor, step: Step) -> Gaussian:
            mean, cov = straight(state, step)
            return Gaussian(mean + bend.value(state, known(step)), cov)

        def linearise(belief: Gaussian, step: Step) -> Affine:
            matrix, offset, cov = tangent(belief, step)
            value, slope = bend.tangent(belief.mean, known(step))
            return Affine(matrix + slope, offset + value - matvec(slope, belief.mean), cov)

        if self.method == "ekf":
            return transition, linearise
        return transition, sigma_point(transition, unscented(self.state_dim, 1.0, 0.0, max(3.0 - self.state_dim, 0.0)))

    def scale_covariances(self, factor: float) -> bool:
        """As of the base; not with sigma points, which lie where the covariance says."""
        return self.method == "ekf" and super().scale_covariances(factor)

    def start_from(self, ssm: StateSpace, interval: float = 1.0) -> None:
        super().start_from(ssm, interval)
        self.residual.set_scale(self.base.state_space().initial.cov)


class Residual(nn.Module):
    """g(h, u) = s b tanh(network(h / s, u) / b): bounded by b standard deviations s, with a Lipschitz constant of at most L in units of s.

    The network's layers have tanh between them; each is divided by its spectral norm where that is above L^(1 / layers).

    Args:
        state_dim: n. input_dim: u, standardised. hidden: widths. bound: b. lipschitz: L. generator: source of the starting values.

    Raises:
        ValueError: a bound that is not positive.
    """

    spread: Tensor

    def __init__(
        self, state_dim: int, input_dim: int, hidden: tuple[int, ...], bound: float, lipschitz: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        for name, value in (("bound", bound), ("lipschitz", lipschitz)):
            if not 0.0 < value < float("inf"):
                raise ValueError(f"{name} is {value}, expected a positive number")
        self.bound, self.lipschitz = bound, lipschitz
        self.layers = nn.ModuleList(random_layer(*sizes, generator) for sizes in pairwise((state_dim + input_dim, *hidden, state_dim)))
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.register_buffer("spread", torch.ones(state_dim))

    def normalised(self) -> _Bend:
        """The function with its weights as they are now, in float64."""
        most = self.lipschitz ** (1.0 / len(self.layers))
        weights, biases = [], []
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            weight = layer.weight.double()
            weights.append(weight / (torch.linalg.matrix_norm(weight, 2) / most).clamp_min(1.0))
            biases.append(layer.bias.double())
        return _Bend(weights, biases, self.spread.double(), self.bound)

    @torch.no_grad()
    def set_scale(self, cov: Tensor) -> None:
        """Measure states in their standard deviations, of a covariance ``(n, n)``."""
        self.spread.copy_(cov.diagonal().clamp_min(1e-12).sqrt())


class _Bend(NamedTuple):
    """A residual network with its weights fixed."""

    weights: list[Tensor]
    biases: list[Tensor]
    spread: Tensor
    bound: float

    def value(self, state: Tensor, inputs: Tensor | None = None) -> Tensor:
        """g, of the shape of the states ``(..., n)``."""
        x = state / self.spread
        x = x if inputs is None else torch.cat([x, inputs.expand(*x.shape[:-1], -1)], dim=-1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.tanh(x @ weight.mT + bias)
        return self.spread * self.bound * torch.tanh((x @ self.weights[-1].mT + self.biases[-1]) / self.bound)

    def tangent(self, state: Tensor, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """g and dg/dh ``(..., n, n)``: forward-mode differentiation written out, the n directions pushed through beside the value."""
        x = state / self.spread
        x = x if inputs is None else torch.cat([x, inputs.expand(*x.shape[:-1], -1)], dim=-1)
        slope = (
            torch.diag(1.0 / self.spread)
            if inputs is None
            else torch.cat([torch.diag(1.0 / self.spread), state.new_zeros(inputs.shape[-1], len(self.spread))])
        )
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.tanh(x @ weight.mT + bias)
            slope = (1.0 - x.square()).unsqueeze(-1) * (weight @ slope)
        x = torch.tanh((x @ self.weights[-1].mT + self.biases[-1]) / self.bound)
        return self.spread * self.bound * x, (self.spread * (1.0 - x.square())).unsqueeze(-1) * (self.weights[-1] @ slope)
