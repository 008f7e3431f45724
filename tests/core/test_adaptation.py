"""Adapting a linear-Gaussian model: closed forms, limits of the weight, and the likelihood that each step must not lower."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ldm_filter.core.adaptation import MOST_RADIUS, adapted_observation, adapted_transition
from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.linalg import stationary
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian, SmootherResult, StateSpace


def model(angle: float, radius: float = 0.95) -> StateSpace:
    c, s = torch.cos(torch.tensor(angle, dtype=torch.float64)), torch.sin(torch.tensor(angle, dtype=torch.float64))
    A = radius * torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    eye = torch.eye(2, dtype=torch.float64)
    return StateSpace(A, A.new_tensor([0.1, -0.2]), 0.05 * eye, eye, A.new_zeros(2), Gaussian(A.new_zeros(2), eye))


def series(ssm: StateSpace, steps: int, noise: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    h, rows = ssm.initial.mean, []
    for _ in range(steps):
        h = ssm.transition_matrix @ h + ssm.transition_offset + 0.05**0.5 * torch.randn(2, generator=generator, dtype=torch.float64)
        rows.append(h + noise * torch.randn(2, generator=generator, dtype=torch.float64))
    return torch.stack(rows)[None]


def known_states(h: Tensor) -> SmootherResult:
    """A smoother that knows the states exactly."""
    return SmootherResult(Gaussian(h, h.new_zeros(*h.shape, 2)), h.new_zeros(1, h.shape[1] - 1, 2, 2))


def test_with_known_states_it_is_ridge_regression_on_pseudo_steps() -> None:
    before, h = model(0.3), series(model(0.6), 50, 0.0)
    pairs = torch.ones(1, 49, dtype=torch.bool)
    pairs[0, 20] = False
    A, a, _, Q = adapted_transition(before, known_states(h), pairs, 7.0)
    # The stationary distribution as 2 + 1 weighted points on which the model before is exact, its Q added by hand.
    level = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - before.transition_matrix, before.transition_offset)
    root = torch.linalg.cholesky(stationary(before.transition_matrix, before.transition_cov)) * 2**0.5
    points = torch.cat([level + root.mT, level - root.mT])
    weights = torch.cat([pairs[0].double(), torch.full((4,), 7.0 / 4.0, dtype=torch.float64)])
    last = torch.cat([torch.cat([h[0, :-1], points]), torch.ones(53, 1, dtype=torch.float64)], 1)
    now = torch.cat([h[0, 1:], points @ before.transition_matrix.mT + before.transition_offset])
    theta = torch.linalg.lstsq(weights.sqrt()[:, None] * last, weights.sqrt()[:, None] * now).solution.mT
    rest = now - last @ theta.mT
    torch.testing.assert_close(torch.cat([A, a[:, None]], 1), theta, rtol=1e-9, atol=1e-12)
    expected = ((weights[:, None] * rest).mT @ rest + 7.0 * before.transition_cov) / (48 + 7.0)
    torch.testing.assert_close(Q, expected, rtol=1e-9, atol=1e-12)


def test_a_large_weight_stays_and_a_small_one_follows() -> None:
    before, after = model(0.3), model(0.6)
    h, pairs = series(after, 3000, 0.0), torch.ones(1, 2999, dtype=torch.bool)
    stays = adapted_transition(before, known_states(h), pairs, 1e9)
    follows = adapted_transition(before, known_states(h), pairs, 1e-3)
    for stayed, followed, old, new in zip(stays[::3], follows[::3], before[:3:2], after[:3:2], strict=True):
        torch.testing.assert_close(stayed, old, rtol=0, atol=1e-4)
        torch.testing.assert_close(followed, new, rtol=0, atol=0.03)


def test_every_step_raises_the_penalised_likelihood() -> None:
    ssm, z = model(0.3), series(model(0.6), 200, 0.3)
    R, seen, pairs = 0.02 * torch.eye(2, dtype=torch.float64), torch.ones(1, 200, dtype=torch.bool), torch.ones(1, 199, dtype=torch.bool)
    seen[0, 40:60] = False
    start, noise, values = ssm, R, []
    for _ in range(8):
        result = filter_sequence(ssm, Gaussian(z, R), seen)
        values.append(float(result.log_likelihood.sum()))
        smoother = smooth_sequence(ssm, result)
        A, a, _, Q = adapted_transition(start, smoother, pairs, 1e-6)  # next to no prior: plain EM, whose likelihood never falls
        _, R = adapted_observation(noise, ssm, z, smoother.smoothed, seen, 1e-6)
        ssm = ssm._replace(transition_matrix=A, transition_offset=a, transition_cov=Q)
    assert all(later > earlier for earlier, later in itertools.pairwise(values))
    assert values[-1] > values[0] + 50


def test_what_inputs_do_is_found_and_is_held_by_the_weight() -> None:
    ssm, generator = model(0.3), torch.Generator().manual_seed(1)
    u = torch.randn(1, 400, 1, dtype=torch.float64, generator=generator)
    B, D = torch.tensor([[0.5], [-1.0]], dtype=torch.float64), torch.tensor([[2.0], [0.3]], dtype=torch.float64)
    h = series(ssm, 400, 0.0)
    driven, pairs, seen = h.clone(), torch.ones(1, 399, dtype=torch.bool), torch.ones(1, 400, dtype=torch.bool)
    for t in range(1, 400):  # the same noise, and the input
        driven[0, t] = h[0, t] + ssm.transition_matrix @ (driven[0, t - 1] - h[0, t - 1]) + B @ u[0, t]
    z, known, R = driven + u @ D.mT, known_states(driven), 0.01 * torch.eye(2, dtype=torch.float64)
    for weight, share in ((1e-6, 1.0), (1e9, 0.0)):
        A, _, gain, _ = adapted_transition(ssm, known, pairs, weight, u, torch.zeros_like(B))
        direct, _ = adapted_observation(R, ssm, z, known.smoothed, seen, weight, u)
        torch.testing.assert_close(A, ssm.transition_matrix, rtol=0, atol=0.03)
        torch.testing.assert_close(gain, share * B, rtol=0, atol=0.04)
        torch.testing.assert_close(direct, share * D, rtol=0, atol=1e-6)


def test_a_growing_motion_is_held_below_the_unit_circle() -> None:
    growing = 1.05 ** torch.arange(60, dtype=torch.float64)[None, :, None] * torch.tensor([1.0, -1.0], dtype=torch.float64)
    A, *_ = adapted_transition(model(0.3), known_states(growing), torch.ones(1, 59, dtype=torch.bool), 1e-3)
    assert 0.99 < float(torch.linalg.eigvals(A).abs().max()) <= MOST_RADIUS + 1e-12
