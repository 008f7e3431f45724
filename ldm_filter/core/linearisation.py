"""Nonlinear transitions seen from a Gaussian belief as affine maps with noise: by Jacobian, by sigma points, by mixing.

    h_t ~ N(f(h_{t-1}), Q(h_{t-1})),   h_{t-1} ~ N(m, P)      ->      h_t = A h_{t-1} + a + w,   w ~ N(0, Q')

All filters, smoothers and forecasts of :mod:`ldm_filter.core.nonlinear` rest on these three numbers (A, a, Q') alone; which of the
functions below made them is the whole difference between an extended, a sigma-point and a locally linear filter.

References: A. H. Jazwinski, *Stochastic Processes and Filtering Theory* (1970), for the Jacobian; S. J. Julier and J. K. Uhlmann, Proc. IEEE 92
(2004), and I. Arasaratnam and S. Haykin, IEEE Trans. Autom. Control 54 (2009), for the points; Á. F. García-Fernández et al., IEEE Trans.
Signal Process. 63 (2015), for their reading as a regression; P. Becker et al., ICML 2019, for the mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vmap

from ldm_filter.core.inputs import check_kind
from ldm_filter.core.linalg import cholesky_psd, matvec, symmetrise
from ldm_filter.types import Gaussian, StateSpace

__all__ = [
    "Affine",
    "Linearise",
    "SigmaPoints",
    "Step",
    "Transition",
    "cubature",
    "extended",
    "linear",
    "mixture",
    "repeated",
    "sigma_point",
    "unscented",
]

Step = int | slice
"""Which step a transition leads into; a slice where the beliefs ``(B, T', n)`` are those of several steps at once."""


class Affine(NamedTuple):
    """h' = A h + a + w,  w ~ N(0, Q), for every belief of a batch.

    Attributes:
        matrix: A, ``(..., n, n)``. offset: a, ``(..., n)``. cov: Q, ``(..., n, n)``; leading dimensions broadcast.
    """

    matrix: Tensor
    offset: Tensor
    cov: Tensor


Transition = Callable[[Tensor, Step], Gaussian]
"""p(h_t | h_{t-1}): states ``(..., B, n)`` (or ``(..., B, T', n)`` with a slice) -> mean of that shape and cov ``(..., n, n)`` that broadcasts."""
Linearise = Callable[[Gaussian, Step], Affine]
"""A belief, mean ``(B, n)`` or ``(B, T', n)``, and the step it is taken into -> the affine map that stands for the transition there."""


class SigmaPoints(NamedTuple):
    """A quadrature rule for N(0, I): ``E f = sum_i w_i f(x_i)``, with ``sum w x = 0`` and ``sum w x x' = I``.

    Attributes:
        points: ``(p, n)``, float64.
        mean_weights: ``(p,)``, of the mean. cov_weights: ``(p,)``, of the covariance; where none is negative, no covariance can lose its
            positive definiteness.
    """

    points: Tensor
    mean_weights: Tensor
    cov_weights: Tensor


def cubature(size: int) -> SigmaPoints:
    """The spherical-radial rule of third degree: 2 n points ``+- sqrt(n) e_i`` of weight ``1 / 2n``; nothing to tune, all weights positive.

    >>> points, weights, _ = cubature(2)
    >>> float((weights[:, None] * points**2).sum(0)[0])
    1.0000000000000002
    """
    axes = size**0.5 * torch.eye(size, dtype=torch.float64)
    weights = torch.full((2 * size,), 0.5 / size, dtype=torch.float64)
    return SigmaPoints(torch.cat([axes, -axes]), weights, weights)


def unscented(size: int, alpha: float = 1.0, beta: float = 2.0, kappa: float = 1.0) -> SigmaPoints:
    """The scaled unscented transform: the centre and 2 n points ``+- sqrt(n + l) e_i``, ``l = alpha^2 (n + kappa) - n``.

    Args:
        size: n.
        alpha: spread of the points; 1 or more keeps every weight positive, small values make the centre's negative.
        beta: 2 is best for a Gaussian: what the centre's distance from the mean adds to the covariance.
        kappa: at least 0 for positive weights.

    Raises:
        ValueError: a spread that is not positive.
    """
    spread = alpha**2 * (size + kappa)
    if not spread > 0.0:
        raise ValueError(f"alpha^2 (size + kappa) is {spread}, expected a positive number: raise alpha or kappa")
    axes = spread**0.5 * torch.eye(size, dtype=torch.float64)
    mean_weights = torch.full((2 * size + 1,), 0.5 / spread, dtype=torch.float64)
    mean_weights[0] = 1.0 - size / spread
    cov_weights = mean_weights.clone()
    cov_weights[0] += 1.0 - alpha**2 + beta
    return SigmaPoints(torch.cat([torch.zeros(1, size, dtype=torch.float64), axes, -axes]), mean_weights, cov_weights)


def extended(transition: Transition) -> Linearise:
    """The tangent at the belief's mean, ``A = f'(m)``, ``a = f(m) - A m``: the extended Kalman filter.

    The Jacobian is exact, by forward mode: n directions are pushed through f side by side. ``f`` must be differentiable by torch.
    """

    def linearise(belief: Gaussian, step: Step) -> Affine:
        mean, size = belief.mean, belief.mean.shape[-1]

        def push(direction: Tensor) -> Any:
            return jvp(lambda state: tuple(transition(state, step)), (mean,), (direction.expand_as(mean),), has_aux=True)

        by_column: Any = (None, -1, None)
        directions = torch.eye(size, dtype=mean.dtype, device=mean.device)
        value, matrix, cov = vmap(push, out_dims=by_column)(directions)
        return Affine(matrix, value - matvec(matrix, mean), cov)

    return linearise


def sigma_point(transition: Transition, rule: SigmaPoints) -> Linearise:
    """The regression of f on the state under the belief, ``A = Cov(f, h) P^-1``, and what it leaves over as noise.

        h_i = m + L x_i,   L L' = P,     E f = sum_i w_i f(h_i)
        A = sum_i w_i f(h_i) x_i' L^-1,     a = E f - A m,     Q' = E Q + sum_i w_i r_i r_i',   r_i = f(h_i) - E f - A L x_i

    ``A P A' + Q'`` is then the covariance of the unscented (or cubature) prediction, as a sum of terms that cannot be negative. No
    derivative of f is needed, and nothing is drawn.
    """

    def linearise(belief: Gaussian, step: Step) -> Affine:
        mean, factor = belief.mean, cholesky_psd(belief.cov, "the covariance of the belief")
        points, mean_weights, cov_weights = (part.to(mean) for part in rule)
        shifts = matvec(factor, points.reshape(len(points), *(1,) * (mean.dim() - 1), -1).expand(-1, *mean.shape))
        value, cov = transition(mean + shifts, step)
        expected = torch.einsum("p,p...i->...i", mean_weights, value)
        slope = torch.einsum("p,p...i,pj->...ij", mean_weights, value, points)
        rest = value - expected - torch.einsum("...ij,pj->p...i", slope, points)
        noise = torch.einsum("p,p...i,p...j->...ij", cov_weights, rest, rest)
        cov = cov if cov.dim() == 2 else torch.einsum("p,p...ij->...ij", mean_weights, cov.expand(*value.shape, value.shape[-1]))
        matrix = torch.linalg.solve_triangular(factor, slope, upper=False, left=False)
        return Affine(matrix, expected - matvec(matrix, mean), symmetrise(cov + noise))

    return linearise


def mixture(
    matrices: Tensor, offsets: Tensor, transition_cov: Tensor, weights: Callable[[Tensor, Step], Tensor], log_scales: Tensor | None = None
) -> tuple[Transition, Linearise]:
    """Locally linear dynamics: ``A = sum_k w_k(m) A_k``, ``a = sum_k w_k(m) a_k``, the weights taken at the belief's mean and held.

    With scales the noise is of the place as well: ``diag(d) Q diag(d)``, ``d = exp(sum_k w_k(m) s_k)``. Where the motion bends fast, or a belief may
    fall to either side, a linear view errs by more than Q; what it errs by is noise to the filter.

    Args:
        matrices: A_k, ``(K, n, n)``. offsets: a_k, ``(K, n)``. transition_cov: Q, ``(n, n)``.
        weights: states ``(..., n)`` -> ``(..., K)``, each at least 0 and 1 in sum, so that A is among the matrices or between them.
        log_scales: s_k, ``(K, n)``; None: d = 1.

    Returns:
        The transition of a state that is known, and its linearisation.
    """

    def blend(state: Tensor, step: Step) -> Affine:
        share = weights(state, step).to(matrices)
        matrix, offset = (share @ matrices.flatten(1)).unflatten(-1, matrices.shape[1:]), share @ offsets
        if log_scales is None:
            return Affine(matrix, offset, transition_cov)
        scale = (share @ log_scales.to(share)).exp()
        return Affine(matrix, offset, scale.unsqueeze(-1) * transition_cov * scale.unsqueeze(-2))

    def transition(state: Tensor, step: Step) -> Gaussian:
        matrix, offset, cov = blend(state, step)
        return Gaussian(matvec(matrix, state.to(matrix)) + offset, cov)

    def linearise(belief: Gaussian, step: Step) -> Affine:
        return blend(belief.mean, step)

    return transition, linearise


def linear(ssm: StateSpace) -> tuple[Transition, Linearise]:
    """A linear model, constant or varying, in the clothes of a nonlinear one: for noise that depends on the state or on past innovations."""
    check_kind("ssm", ssm, StateSpace)

    def at(field: Tensor, step: Step, event_dims: int) -> Tensor:
        if field.dim() == event_dims:
            return field
        if field.shape[1] > 1:
            return field[:, step]
        return field[:, 0] if isinstance(step, int) else field

    def linearise(belief: Gaussian, step: Step) -> Affine:
        return Affine(at(ssm.transition_matrix, step, 2), at(ssm.transition_offset, step, 1), at(ssm.transition_cov, step, 2))

    def transition(state: Tensor, step: Step) -> Gaussian:
        matrix, offset, cov = linearise(Gaussian(state, state), step)
        return Gaussian(matvec(matrix, state.to(matrix)) + offset, cov)

    return transition, linearise


def repeated(transition: Transition, linearise: Linearise, counts: Tensor) -> tuple[Transition, Linearise]:
    """Several steps as one, for rows with a gap before them: each is linearised at the prediction of the one before.

        A = A_k ... A_1,   a = A_k (... (A_2 a_1 + a_2) ...) + a_k,   Q = A_k (... (A_2 Q_1 A_2' + Q_2) ...) A_k' + Q_k

    This is what as many rows without an observation would be predicted by. A state that is known is carried on by tangents.

    Args:
        counts: k, whole numbers ``(1 | B, T)``; that at index t leads into step t.
    """

    def over(one: Linearise) -> Linearise:
        def several(belief: Gaussian, step: Step) -> Affine:
            count = counts[:, step] if counts.shape[1] > 1 or not isinstance(step, int) else counts[:, 0]
            way, now = one(belief, step), belief
            for k in range(2, int(count.max()) + 1):
                A, a, Q = way
                now = Gaussian(matvec(A, belief.mean) + a, symmetrise(A @ belief.cov @ A.mT + Q))
                B, b, W = one(now, step)
                going = (count >= k)[..., None, None]
                way = Affine(
                    torch.where(going, B @ A, A), torch.where(going[..., 0], matvec(B, a) + b, a), torch.where(going, symmetrise(B @ Q @ B.mT + W), Q)
                )
            return way

        return several

    exact = over(extended(transition))

    def move(state: Tensor, step: Step) -> Gaussian:
        matrix, offset, cov = exact(Gaussian(state, torch.zeros_like(state).unsqueeze(-1) * torch.zeros_like(state).unsqueeze(-2)), step)
        return Gaussian(matvec(matrix, state.to(matrix)) + offset, cov)

    return move, over(linearise)
