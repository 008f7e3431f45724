"""Learned dynamics that are a polynomial of the state, found by linear regression at the start."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm_filter.core.linalg import cholesky, matvec
from ldm_filter.core.linearisation import Affine, Linearise, Step, Transition, linear
from ldm_filter.models.base import NO_CONTEXT
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.noise import AdaptiveProcessNoise, StateNoise
from ldm_filter.models.nonlinear import RegularDynamics
from ldm_filter.types import Context, Gaussian, StateSpace

__all__ = ["PolynomialDynamics"]

# Share of the regressors' mean square that is added to all of them.
RIDGE = 1e-9


class PolynomialDynamics(RegularDynamics):
    """h_t = A h_{t-1} + a + e W F phi(h_{t-1} / s, u_t) + w, phi all monomials of degree 0 to d.

    For motions whose law is smooth and of low order, as those of rigid bodies, populations and flows often are: W enters linearly, so that
    :meth:`fit_motion` finds it by least squares, far more exactly than a network is trained. Beyond ``reach`` standard deviations s of the
    state the polynomial is held at its value there, and A is stable: paths stay bounded. The filter is the extended one, with exact
    tangents. At the start W = 0: the filter is the linear one.

    The regression also sets the units in which W is trained: F makes the monomials orthonormal over the data and e are the residuals'
    standard deviations, so that a step of size r moves the motion by a share r of what it cannot explain. A, a and B, and C where it is
    square, say nothing that W, or the state's basis, could not, and stay as they were started.

    Args:
        base: the linear model.
        degree: d, at least 2.
        reach: in standard deviations of the state at the start.
        adaptive, state_noise: as of :class:`~ldm_filter.models.stepwise.StepwiseDynamics`.

    Raises:
        ValueError: a degree below 2 or a reach that is not positive.

    Source:
        S. L. Brunton et al., PNAS 113 (2016), for the regression on a library of monomials; the filter around it is this project's.
    """

    places: Tensor
    spread: Tensor
    frame: Tensor
    unit: Tensor

    def __init__(
        self,
        base: LinearDynamics,
        degree: int = 3,
        reach: float = 6.0,
        adaptive: AdaptiveProcessNoise | None = None,
        state_noise: StateNoise | None = None,
    ) -> None:
        super().__init__(base, adaptive, state_noise)
        if degree < 2:
            raise ValueError(f"degree is {degree}, expected at least 2; of degree 1 are linear dynamics")
        if not 0.0 < reach < float("inf"):
            raise ValueError(f"reach is {reach}, expected a positive number of standard deviations")
        n, size = base.state_dim, base.state_dim + base.input_dim
        # Entries of (h, u, 1): a monomial is a product of d of them, and index `size` is the 1.
        places = list(combinations_with_replacement(range(size + 1), degree))
        self.degree, self.reach = degree, reach
        self.weight = nn.Parameter(torch.zeros(n, len(places)))
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("spread", torch.ones(n))
        self.register_buffer("unit", torch.ones(n))
        self.register_buffer("frame", torch.eye(len(places)))
        for fixed in (base.contraction, base.slack, base.mean, *([base.input_matrix] if base.input_dim else [])):
            fixed.requires_grad_(False)
        if base.latent_dim == n:
            base.observation.requires_grad_(False)

    def motion(self, exact: StateSpace, context: Context) -> tuple[Transition, Linearise]:
        """The linear model and the polynomial beside it."""
        straight, tangent = linear(exact)
        law, given = self._law(), self.standardise(context.inputs)

        def known(step: Step) -> Tensor | None:
            return None if given is None else given[:, step]

        def transition(state: Tensor, step: Step) -> Gaussian:
            mean, cov = straight(state, step)
            return Gaussian(mean + law.value(state.double(), known(step)), cov)

        def linearise(belief: Gaussian, step: Step) -> Affine:
            matrix, offset, cov = tangent(belief, step)
            value, slope = law.tangent(belief.mean, known(step))
            return Affine(matrix + slope, offset + value - matvec(slope, belief.mean), cov)

        return transition, linearise

    def start_from(self, ssm: StateSpace, interval: float = 1.0) -> None:
        super().start_from(ssm, interval)
        with torch.no_grad():
            self.spread.copy_(self.base.state_space().initial.cov.diagonal().clamp_min(1e-12).sqrt())
            self.unit.copy_(self.spread)

    @torch.no_grad()
    def fit_motion(self, before: Tensor, after: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """W by least squares of what the linear model leaves over, ``after - A before - a``, on the monomials at ``before``.

        Args:
            before, after: states ``(N, n)`` and those a step later. context: inputs ``(N, 1, u)`` of the later step.

        Returns:
            The residuals ``(N, n)``.

        Raises:
            ValueError: fewer pairs than monomials.
        """
        if len(before) < self.weight.shape[1]:
            raise ValueError(f"before has {len(before)} states, and a polynomial of {self.weight.shape[1]} terms needs as many at least")
        inputs = self.standardise(context.inputs)
        rest = after.double() - self.base.predict(Gaussian(before.double(), before.new_zeros(self.state_dim, self.state_dim).double()), context).mean
        terms = self._law().terms(before.double(), None if inputs is None else inputs[:, 0].double())
        gram = terms.mT @ terms / len(terms)
        factor = cholesky(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        self.frame.copy_(torch.linalg.solve_triangular(factor, torch.eye(len(gram)).to(factor), upper=False))
        framed = terms @ self.frame.double().mT
        found = framed.mT @ rest / len(rest)
        rest = rest - framed @ found
        self.unit.copy_(rest.std(0).clamp_min(1e-12))
        self.weight.copy_((found / self.unit.double()).mT)
        return rest

    @torch.no_grad()
    def slope(self, states: Tensor) -> Tensor:
        """The derivative of the motion at states ``(..., n)``, float64; inputs at their mean."""
        mean_inputs = states.new_zeros(self.base.input_dim) if self.base.input_dim else None
        return self.base.exact().transition_matrix + self._law().tangent(states.double(), mean_inputs)[1]

    def _law(self) -> _Law:
        return _Law(self.unit.double()[:, None] * self.weight.double() @ self.frame.double(), self.places, self.spread.double(), self.reach)


class _Law(NamedTuple):
    """The polynomial with its coefficients fixed, in float64."""

    weight: Tensor
    places: Tensor
    spread: Tensor
    reach: float

    def value(self, state: Tensor, inputs: Tensor | None = None) -> Tensor:
        """``(..., n)``."""
        return matvec(self.weight, self.terms(state, inputs))

    def terms(self, state: Tensor, inputs: Tensor | None = None) -> Tensor:
        """phi, ``(..., terms)``."""
        return self._entries(self._clamp(state)[0], inputs)[..., self.places].prod(-1)

    def tangent(self, state: Tensor, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The value and its derivative in the state ``(..., n, n)``: each factor of a monomial in turn left out of its product."""
        held, slope = self._clamp(state)
        factors = self._entries(held, inputs)[..., self.places]
        n, degree = state.shape[-1], self.places.shape[1]
        total = torch.zeros_like(slope).unsqueeze(-2).expand(*slope.shape[:-1], n, n)
        for k in range(degree):
            others = torch.cat([factors[..., :k], factors[..., k + 1 :]], dim=-1).prod(-1)
            chosen = nn.functional.one_hot(self.places[:, k], int(self.places.max()) + 1)[:, :n].to(others)
            total = total + (self.weight * others.unsqueeze(-2)) @ chosen
        return matvec(self.weight, factors.prod(-1)), total * (slope / self.spread).unsqueeze(-2)

    def _clamp(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates in standard deviations, held within the reach, and the slope of that, 1 or 0."""
        x = state / self.spread
        return x.clamp(-self.reach, self.reach), (x.abs() <= self.reach).to(x)

    def _entries(self, held: Tensor, inputs: Tensor | None) -> Tensor:
        one = torch.ones_like(held[..., :1])
        given = [] if inputs is None else [inputs.to(held).expand(*held.shape[:-1], -1)]
        return torch.cat([held, *given, one], dim=-1)
