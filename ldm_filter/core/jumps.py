"""Kalman filtering of a state that sometimes jumps: two hypotheses at every step, weighed by what is then observed, and made one Gaussian again.

    calm  h_t = A h_{t-1} + a + w,  w ~ N(0, Q)                 with probability 1 - p
    jump  h_t <- J h_t + j + u,     u ~ N(0, D)  after that     with probability p

p(z_t | z_<t) is the mixture of the two, in closed form: a density that has not seen z_t. The mixture p(h_t | z_<=t) is replaced by the Gaussian of
its mean and covariance, the only approximation (the generalised pseudo-Bayes filter of first order). Nothing is sampled. An observation between the
two hypotheses leaves a wide belief, so the prediction after it is wide as well; one that decides leaves a narrow one, at once.

Source: G. A. Ackerson and K. S. Fu, IEEE Trans. Autom. Control 15 (1970); Y. Bar-Shalom, X.-R. Li, T. Kirubarajan, *Estimation with Applications to
Tracking and Navigation* (2001), section 11.6.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_filter.core.backends import StepModel, run_step
from ldm_filter.core.inputs import prepare
from ldm_filter.core.linalg import affine, cholesky, matvec, round_cov, symmetrise
from ldm_filter.core.recursion import innovation_cov, per_step, predict_cov
from ldm_filter.types import FilterResult, Gaussian, StateSpace

__all__ = ["JumpStateSpace", "Mixture", "collapse", "filter_sequence", "forecast", "hypotheses", "linearised", "update"]


class JumpStateSpace(NamedTuple):
    """A linear model, constant or varying, and what a jump does.

    Attributes:
        calm: the motion without jumps, and how it is observed.
        chance: p, ``()`` or ``(1 | B, 1 | T)``, between 0 and 1; that at index t is of the step into t.
        matrix, offset, cov: J ``(n, n)``, j ``(n,)``, D ``(n, n)``.
    """

    calm: StateSpace
    chance: Tensor
    matrix: Tensor
    offset: Tensor
    cov: Tensor


class Mixture(NamedTuple):
    """Two Gaussians for each of a batch: log-weights ``(..., 2)``, mean ``(..., 2, n)``, cov ``(..., 2, n, n)``; the calm one first."""

    log_weights: Tensor
    mean: Tensor
    cov: Tensor


def collapse(mixture: Mixture) -> Gaussian:
    """The Gaussian with the mixture's mean and covariance: ``m = sum w m_k``, ``P = sum w (P_k + (m_k - m)(m_k - m)')``."""
    weights = mixture.log_weights.softmax(-1).unsqueeze(-1)
    mean = (weights * mixture.mean).sum(-2)
    off = mixture.mean - mean.unsqueeze(-2)
    cov = (weights.unsqueeze(-1) * (mixture.cov + off.unsqueeze(-1) * off.unsqueeze(-2))).sum(-3)
    return Gaussian(mean, symmetrise(cov))


def hypotheses(model: JumpStateSpace, belief: Gaussian, step: int | slice) -> Mixture:
    """One step ahead of a belief, mean ``(B, n)`` (or ``(B, T', n)`` with a slice of steps), in float64."""
    A, a, Q = (_at(part.double(), step, event) for part, event in zip(model.calm[:3], (2, 1, 2), strict=True))
    mean, cov = matvec(A, belief.mean) + a, symmetrise(predict_cov(belief.cov, A, Q))
    J, j, D = model.matrix.double(), model.offset.double(), model.cov.double()
    chance = _at(model.chance.double(), step, 0).expand(mean.shape[:-1])
    means, covs = torch.stack([mean, matvec(J, mean) + j], -2), torch.stack([cov, symmetrise(predict_cov(cov, J, D))], -3)
    return Mixture(torch.stack([torch.log1p(-chance), chance.log()], -1), means, covs)


def update(mixture: Mixture, model: StepModel, z: Tensor, step: int = 0) -> tuple[Mixture, Tensor]:
    """Both hypotheses conditioned on a measurement ``(B, m)``, less its offset, and weighed by it; and the log-density of the mixture ``(B,)``.

    w_k ~ p_k N(z; C h_k, C P_k C' + R)
    """
    (batch, _, n), m = mixture.mean.shape, z.shape[-1]
    both = 2 * batch
    C, R = (x if x.ndim == 2 or len(x) == 1 else x.repeat_interleave(2, 0) for x in (model.C, model.R))
    seen = torch.as_tensor(model.seen, dtype=torch.float64, device=z.device).expand(batch).repeat_interleave(2)
    still = StepModel(*_still(torch.eye(n, device=z.device)), C, R, seen)
    belief = Gaussian(mixture.mean.reshape(both, n), mixture.cov.reshape(both, n, n))
    done = run_step(still, z.expand(batch, m).repeat_interleave(2, 0), belief, step)
    joint = mixture.log_weights + done.log_likelihood.reshape(batch, 2)
    density = joint.logsumexp(-1)
    return Mixture(joint - density.unsqueeze(-1), done.filtered.mean.reshape(batch, 2, n), done.filtered.cov.reshape(batch, 2, n, n)), density


def filter_sequence(model: JumpStateSpace, measurements: Gaussian, observed: Tensor | None = None, before: Gaussian | None = None) -> FilterResult:
    """Filter a batch of sequences; arguments, result and errors as of :func:`ldm_filter.core.kalman.filter_sequence`.

    Predicted and filtered beliefs are those of the mixtures' means and covariances, the log-likelihood is the mixture's own.

    Args:
        before: the filtered belief ``(B, n)`` of the step before the first row; None: ``model.calm.initial`` is the prediction for it.
    """
    calm = model.calm
    eye = torch.eye(calm.initial.mean.shape[-1], dtype=calm.initial.mean.dtype, device=calm.initial.mean.device)
    still = StateSpace(eye, torch.zeros_like(eye[0]), eye, calm.observation_matrix, calm.observation_offset, calm.initial)
    x = prepare(still, measurements, observed)  # the transition, in float64, is none of its concern
    batch, steps, m = x.z.shape
    Cs, Rs, zs = (per_step(field.double(), steps) for field in (x.C, x.R, x.z))
    count = torch.as_tensor(x.seen, dtype=torch.float64, device=x.z.device).expand(batch, steps)
    belief = None if before is None else Gaussian(before.mean.double(), symmetrise(before.cov.double()))
    rows: list[tuple[Gaussian, Gaussian]] = []
    densities = []
    for t in range(steps):
        one, z = StepModel(*_still(eye), Cs[t], Rs[t], count[:, t]), zs[t].expand(batch, m)
        if belief is None:
            predicted = Gaussian(x.initial.mean.double().expand(batch, -1), symmetrise(x.initial.cov.double()).expand(batch, *eye.shape))
            done = run_step(one, z, predicted, t)
            belief, density = done.filtered, done.log_likelihood
        else:
            ahead = hypotheses(model, belief, t)
            after, density = update(ahead, one, z, t)
            predicted, belief = collapse(ahead), collapse(after)
        rows.append((predicted, belief))
        densities.append(density)
    return _result(model, measurements, rows, densities)


def _still(eye: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The transition that changes nothing."""
    exact = eye.double()
    return exact, torch.zeros_like(exact[0]), torch.zeros_like(exact)


def _result(model: JumpStateSpace, measurements: Gaussian, rows: list[tuple[Gaussian, Gaussian]], densities: list[Tensor]) -> FilterResult:
    """Stacked over time, with p(z_t | z_<t) of all channels, observed or not, in the dtype of the measurements."""
    dtype = measurements.mean.dtype
    predicted, filtered = (Gaussian(*(torch.stack(parts, 1) for parts in zip(*found, strict=True))) for found in zip(*rows, strict=True))
    C, c = model.calm.observation_matrix.double(), model.calm.observation_offset.double()
    seen = Gaussian(matvec(C, predicted.mean) + c, symmetrise(innovation_cov(predicted.cov, C, measurements.cov.double())))
    predicted, filtered, seen = (Gaussian(part.mean.to(dtype), round_cov(part.cov, dtype)) for part in (predicted, filtered, seen))
    return FilterResult(predicted, filtered, seen, torch.stack(densities, 1).to(dtype))


def forecast(model: JumpStateSpace, belief: Gaussian, horizon: int) -> Gaussian:
    """The states 1 .. H steps after a belief ``(B, n)``: at each step the Gaussian of the mixture."""
    now, states = Gaussian(belief.mean.double(), symmetrise(belief.cov.double())), []
    for step in range(horizon):
        now = collapse(hypotheses(model, now, step))
        states.append(now)
    mean, cov = (torch.stack(parts, 1) for parts in zip(*states, strict=True))
    return Gaussian(mean.to(belief.mean.dtype), round_cov(cov, belief.mean.dtype))


def linearised(model: JumpStateSpace, result: FilterResult) -> tuple[StateSpace, FilterResult]:
    """The linear model that the steps of a run most likely were, for a smoother, and the run with its predictions.

    Each step's hypotheses are weighed by where the filter was after it, ``w_k ~ p_k N(h_t; h_k, P_k + P_t)`` with h_t, P_t the filtered belief, and
    their matrices mixed: A = sum w_k A_k, and Q what the mixture's covariance has beyond A P A'.
    """
    steps, dtype = result.filtered.mean.shape[1], result.filtered.mean.dtype
    n = result.filtered.mean.shape[-1]
    filtered = Gaussian(result.filtered.mean.double(), symmetrise(result.filtered.cov.double()))
    before, after = (Gaussian(*(part[:, piece] for part in filtered)) for piece in (slice(0, steps - 1), slice(1, steps)))
    ahead = hypotheses(model, before, slice(1, steps))
    root = cholesky(ahead.cov + after.cov.unsqueeze(-3))
    white = torch.linalg.solve_triangular(root, (after.mean.unsqueeze(-2) - ahead.mean).unsqueeze(-1), upper=False)
    fit = -0.5 * white.square().sum((-2, -1)) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weighed = ahead._replace(log_weights=(ahead.log_weights + fit).log_softmax(-1))
    predicted = collapse(weighed)
    A = _at(model.calm.transition_matrix.double(), slice(1, steps), 2)
    share = weighed.log_weights.exp()[..., None, None]
    way = share[..., 0, :, :] * A + share[..., 1, :, :] * (model.matrix.double() @ A)
    # A sliver against the rounding of the result.
    sliver = 4 * n * torch.finfo(dtype).eps * torch.diag_embed(predicted.cov.diagonal(dim1=-2, dim2=-1))
    noise = symmetrise(predicted.cov - predict_cov(before.cov, way, torch.zeros_like(way))) + sliver
    push = predicted.mean - affine(torch.zeros_like(before.mean), way, before.mean)
    eye = torch.eye(n, dtype=torch.float64, device=way.device).expand(len(way), 1, n, n)
    A, a, Q = (torch.cat(parts, 1).to(dtype) for parts in ((eye, way), (torch.zeros_like(push[:, :1]), push), (eye, noise)))
    mean = torch.cat([result.predicted.mean[:, :1], predicted.mean.to(dtype)], 1)
    cov = torch.cat([result.predicted.cov[:, :1], round_cov(predicted.cov, dtype)], 1)
    ssm = StateSpace(A, a, Q, model.calm.observation_matrix, model.calm.observation_offset, model.calm.initial)
    return ssm, result._replace(predicted=Gaussian(mean, cov))


def _at(field: Tensor, step: int | slice, event_dims: int) -> Tensor:
    if field.dim() == event_dims:
        return field
    if field.shape[1] > 1:
        return field[:, step]
    return field[:, 0] if isinstance(step, int) else field
