"""Where the training of polynomial dynamics starts: motion by regression, then the shares of process and measurement noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_filter.core.linalg import cholesky, symmetrise
from ldm_filter.models.encoders import ConstantNoise
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.polynomial import PolynomialDynamics
from ldm_filter.types import Context, Gaussian

__all__ = ["start_motion"]

ROUNDS = 3
# Least part of a direction's unexplained variance that either noise is given.
LEAST = 1e-3
# Of R, tried as more process noise: what the regression cannot show, because the filter's linear view of the motion errs as well.
SHARES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
MOST_TRIED = 100  # series


@torch.no_grad()
def start_motion(model: LatentFilter, latents: Tensor, seen: Tensor, context: Context) -> None:
    """Regress each state on the one before, filter with what was found, and again: a filtered state holds less noise than a latent.

    Where the latents show the whole state (C square) the state a step later is C^-1 (z - c), whose noise is none of the regressor's, and
    Q and R follow from the residuals; else both are smoothed states. Nothing is done for dynamics of another kind, or R that varies.

    Args:
        model: started at its linear model. latents: ``(B, T, m)``, what inputs do to them taken out. seen: ``(B, T)``. context: of them.
    """
    dynamics, noise = model.dynamics, model.encoder.noise
    pairs = seen[:, 1:] & seen[:, :-1]
    if not isinstance(dynamics, PolynomialDynamics) or not isinstance(noise, ConstantNoise) or int(pairs.sum()) < 4 * dynamics.weight.shape[1]:
        return
    fields = dynamics.base.state_space()
    inputs = None if context.inputs is None else context.inputs.expand(len(seen), -1, -1)[:, 1:][pairs].unsqueeze(1)
    whole = dynamics.latent_dim == dynamics.state_dim
    after = torch.linalg.solve(fields.observation_matrix.double(), (latents - fields.observation_offset).double().mT).mT if whole else latents
    states = after
    for place in range(ROUNDS):
        if whole and place:  # with too little process noise the filter is lost at times, and the regression on what it says with it
            _widen(model, latents, seen, context)
        if place or not whole:
            result = dynamics.filter(Gaussian(latents, noise(latents[:1, :1])), seen, context)
            states = (result.filtered if whole else dynamics.smooth(result, context).smoothed).mean.double()
        rest = dynamics.fit_motion(states[:, :-1][pairs], (after if whole else states)[:, 1:][pairs], Context(inputs=inputs))
        if whole and not place:
            _split_noise(model, rest, states, pairs)
    if whole:
        _widen(model, latents, seen, context)


def _split_noise(model: LatentFilter, rest: Tensor, states: Tensor, pairs: Tensor) -> None:
    """Q and R from the residuals e_t = v_t - J_t v_{t-1} + w_t of states seen with noise v: E[e_t e_{t-1}'] = -J_t E[v v']."""
    dynamics, noise = model.dynamics, model.encoder.noise
    assert isinstance(dynamics, PolynomialDynamics)
    assert isinstance(noise, ConstantNoise)
    error = torch.zeros_like(states[:, 1:])
    error[pairs] = rest
    slope = dynamics.slope(states[:, :-1])
    both = pairs[:, 1:] & pairs[:, :-1]
    later, earlier = error[:, 1:][both], error[:, :-1][both]
    total = symmetrise(rest.mT @ rest / len(rest))
    seen_noise = _within(symmetrise(-torch.linalg.solve(slope[:, 1:][both], later.unsqueeze(-1))[..., 0].mT @ earlier / len(earlier)), total)
    pushed = (slope[pairs] @ seen_noise @ slope[pairs].mT).mean(0)
    base = dynamics.base
    process = _within(symmetrise(total - seen_noise - pushed), total)
    base.set_matrices(base.exact()._replace(transition_cov=process if base.full_cov else torch.diag(process.diagonal())))
    observation = base.state_space().observation_matrix.double()
    noise.set_covariance(symmetrise(observation @ seen_noise @ observation.mT))


def _widen(model: LatentFilter, latents: Tensor, seen: Tensor, context: Context) -> None:
    """Process noise as large as the likelihood of some of the series asks for."""
    dynamics = model.dynamics
    assert isinstance(dynamics, PolynomialDynamics)
    base = dynamics.base
    every = slice(None, None, max(1, len(latents) // MOST_TRIED))
    context = context._replace(inputs=context.inputs if context.inputs is None or len(context.inputs) == 1 else context.inputs[every])
    fields, noise = base.exact(), model.encoder.noise(latents[:1, :1])
    turned = torch.linalg.solve(fields.observation_matrix, torch.linalg.solve(fields.observation_matrix, noise[0, 0].double()).mT)
    found = []
    for share in SHARES:
        wider = symmetrise(fields.transition_cov + share * turned)
        base.set_matrices(fields._replace(transition_cov=wider if base.full_cov else torch.diag(wider.diagonal())))
        value = float(dynamics.moments(Gaussian(latents[every], noise), seen[every], context)[1].mean())
        found.append((value, base.exact()))
    base.set_matrices(max(found, key=lambda entry: entry[0])[1])


def _within(part: Tensor, total: Tensor) -> Tensor:
    """The covariance nearest to ``part`` that is at least a sliver of ``total`` and at most all of it, in the units of that."""
    factor = cholesky(total)
    white = torch.linalg.solve_triangular(factor, torch.linalg.solve_triangular(factor, part, upper=False).mT, upper=False)
    values, vectors = torch.linalg.eigh(symmetrise(white))
    root = factor @ vectors
    return symmetrise(root * values.clamp(LEAST, 1.0) @ root.mT)
