"""Sampling a model of continuous time, and taking several steps at once: against scipy, quadrature and algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec
from scipy.linalg import expm
from torch import Tensor

from ldm_filter.core.discretise import discretise, power_steps
from ldm_filter.core.linalg import stationary
from tests.models.problems import rng


def system(n: int, seed: int = 0, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """A stable F and a Q of given rank."""
    raw = torch.randn(n, n, generator=rng(seed), dtype=torch.float64)
    drift = raw - (torch.linalg.eigvals(raw).real.max() + 0.3) * torch.eye(n, dtype=torch.float64)
    factor = torch.randn(n, rank or n, generator=rng(seed + 1), dtype=torch.float64)
    return drift, factor @ factor.mT


def van_loan(drift: np.ndarray, diffusion: np.ndarray, d: float) -> np.ndarray:
    n = len(drift)
    block = expm(np.block([[-drift, diffusion], [np.zeros((n, n)), drift.T]]) * d)
    return block[n:, n:].T @ block[:n, n:]


@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize("rank", [None, 1])
def test_it_is_van_loans_matrix_exponential(n: int, rank: int | None) -> None:
    drift, diffusion = system(n, rank=rank)
    distance = torch.tensor([1e-6, 0.02, 0.7, 1.0, 3.1], dtype=torch.float64)
    found = discretise(drift, diffusion, distance)
    for i, d in enumerate(distance.tolist()):
        A, Q = expm(drift.numpy() * d), van_loan(drift.numpy(), diffusion.numpy(), d)
        held = quad_vec(lambda s: expm(drift.numpy() * s), 0.0, d, epsrel=1e-12)[0]
        spread = quad_vec(lambda s: expm(drift.numpy() * s) @ diffusion.numpy() @ expm(drift.numpy() * s).T, 0.0, d, epsrel=1e-12)[0]
        np.testing.assert_allclose(found.transition[i], A, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(found.held[i], held, rtol=1e-10, atol=1e-12 * d)
        np.testing.assert_allclose(found.cov[i], spread, rtol=1e-9, atol=1e-12 * d)
        np.testing.assert_allclose(found.cov[i], Q, rtol=1e-6, atol=1e-8 * d)  # Van Loan's own error grows with exp(-F d)


def test_a_gap_of_any_length_ends_in_the_stationary_distribution() -> None:
    """Van Loan's block, which holds exp(-F d), overflows here."""
    drift, diffusion = system(4)
    found = discretise(drift, diffusion, torch.tensor([1e3, 1e12], dtype=torch.float64))
    one = discretise(drift, diffusion, torch.ones(1, dtype=torch.float64))
    limit = stationary(one.transition[0], one.cov[0])
    torch.testing.assert_close(found.cov, limit.expand(2, 4, 4), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.transition, torch.zeros(2, 4, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.held, -torch.linalg.inv(drift).expand(2, 4, 4), rtol=1e-10, atol=1e-12)


def test_two_steps_are_one() -> None:
    drift, diffusion = system(3, seed=5)
    a, b, both = (discretise(drift, diffusion, torch.tensor([d], dtype=torch.float64)) for d in (0.31, 1.9, 2.21))
    torch.testing.assert_close(b.transition @ a.transition, both.transition, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(b.transition @ a.cov @ b.transition.mT + b.cov, both.cov, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(b.transition @ a.held + b.held, both.held, rtol=1e-12, atol=1e-13)


def test_gradients() -> None:
    drift, diffusion = (part.requires_grad_() for part in system(3, seed=2))
    distance = torch.tensor([0.1, 2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: discretise(x[0], x[1] + x[1].mT, x[2]), (drift, diffusion, distance))
    count = torch.tensor([1, 2, 7])
    assert torch.autograd.gradcheck(lambda A, Q: power_steps(0.3 * A, Q + Q.mT, count), (drift, diffusion))


def test_powers_are_steps_taken_one_by_one() -> None:
    drift, cov = system(3)
    A = 0.9 * torch.linalg.qr(drift)[0]
    counts = torch.tensor([1, 2, 3, 8, 13])
    found = power_steps(A, cov, counts)
    for i, k in enumerate(counts.tolist()):
        P, S, power = torch.zeros_like(A), torch.zeros_like(A), torch.eye(3, dtype=A.dtype)
        for _ in range(k):
            P, S, power = A @ P @ A.mT + cov, S + power, A @ power
        torch.testing.assert_close(found.cov[i], P, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.held[i], S, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.transition[i], power, rtol=1e-12, atol=1e-12)
