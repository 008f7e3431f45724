"""Factors, solves and the stationary covariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch.testing import assert_close

from ldm_filter.core.linalg import (
    NotPositiveDefiniteError,
    affine,
    cholesky,
    cholesky_psd,
    least_squares,
    matvec,
    multiply_add,
    round_cov,
    solve_psd,
    stationary,
    symmetrise,
    whiten,
)
from tests.core.problems import normal, random_cov, stable


def test_cholesky_and_solve() -> None:
    cov, x = random_cov(0, 2, 3, 4), normal(1, 2, 3, 4, 2)
    factor = cholesky(cov)
    assert_close(factor @ factor.mT, cov)
    assert torch.equal(cholesky_psd(cov), factor)
    assert_close(cov @ solve_psd(cov, x), x)


def test_cholesky_names_the_first_failure() -> None:
    cov = torch.eye(2).repeat(2, 3, 1, 1)
    cov[1, 1, 0, 0] = -1.0
    cov[1, 2] = float("nan")
    with pytest.raises(NotPositiveDefiniteError, match=r"noise\[1, 1\] is not positive definite \(of 6 matrices, 2 fail\)"):
        cholesky(cov, "noise")
    with pytest.raises(ValueError, match=r"^noise is not positive definite"):
        cholesky(cov[1, 1], "noise")
    with pytest.raises(NotPositiveDefiniteError, match=r"noise\[1, 1\]"):
        cholesky_psd(cov, "noise")


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_singular_factor(rank: int, scale: float) -> None:
    root = normal(3, 5, 3, rank)
    cov = scale * root @ root.mT
    factor = cholesky_psd(cov)
    assert_close(factor @ factor.mT, cov, rtol=1e-7, atol=1e-7 * scale)
    if rank == 0:
        assert factor.abs().max() < 1e-12


def test_a_singular_neighbour_does_not_blur_a_regular_matrix() -> None:
    regular = random_cov(1, 3)
    factors = cholesky_psd(torch.stack([regular, torch.zeros_like(regular)]))
    assert_close(factors[0], cholesky(regular), rtol=0.0, atol=1e-15)


def test_products() -> None:
    M, x, a = normal(0, 3, 2), normal(1, 5, 2), normal(2, 3)
    assert_close(matvec(M, x), torch.einsum("pq,bq->bp", M, x))
    assert_close(affine(a, M, x, -1.0), a - torch.einsum("pq,bq->bp", M, x))
    assert_close(affine(a, M, x[0], -1.0), a - torch.einsum("pq,q->p", M, x[0]))
    Ms = normal(3, 5, 3, 2)
    assert_close(matvec(Ms, x), torch.einsum("bpq,bq->bp", Ms, x))
    assert_close(affine(a, Ms, x), a + torch.einsum("bpq,bq->bp", Ms, x))
    for left, right in ((M, M.mT), (Ms, Ms.mT), (M, Ms.mT), (Ms[None], Ms.mT[None])):
        assert_close(multiply_add(torch.eye(3).double(), left, right, -1.0), torch.eye(3).double() - left @ right)
    assert torch.equal(symmetrise(M.mT @ M + torch.tensor([[0.0, 2.0], [0.0, 0.0]])), symmetrise(M.mT @ M + torch.tensor([[0.0, 0.0], [2.0, 0.0]])))


@pytest.mark.parametrize("batch", [1, 4])
def test_whiten(batch: int) -> None:
    factor, x = cholesky(random_cov(0, batch, 3, 2)), normal(1, 4, 3, 2)
    assert_close(matvec(factor, whiten(factor, x)), x)


def test_rounding_keeps_positive_definite() -> None:
    root = normal(0, 50, 6, 2)
    cov = root @ root.mT + 1e-9 * torch.eye(6, dtype=torch.float64)
    assert torch.linalg.eigvalsh(cov).min() > 0.0
    assert torch.linalg.eigvalsh(cov.float().double()).min() < 0.0
    rounded = round_cov(cov, torch.float32)
    assert rounded.dtype == torch.float32
    assert torch.linalg.eigvalsh(rounded.double()).min() > 0.0
    assert_close(rounded.double(), cov, rtol=1e-6, atol=0.0)
    assert round_cov(cov, torch.float64) is cov


@pytest.mark.parametrize("radius", [0.0, 0.5, 0.99, 0.99999])
def test_stationary(radius: float) -> None:
    A, Q = stable(0, 4), random_cov(1, 4)
    A = A * radius / torch.linalg.eigvals(A).abs().max()
    expected = torch.from_numpy(solve_discrete_lyapunov(A.numpy(), Q.numpy()))
    P = stationary(A, Q)
    assert_close(P, expected, rtol=1e-7, atol=1e-9)
    assert_close(A @ P @ A.mT + Q, P, rtol=1e-10, atol=1e-10)
    assert_close(stationary(A.expand(2, 4, 4), Q.expand(2, 4, 4)), P.expand(2, 4, 4))
    assert stationary(A.float(), Q.float()).dtype == torch.float32


@pytest.mark.parametrize("radius", [1.0, 1.2])
def test_no_stationary_covariance(radius: float) -> None:
    with pytest.raises(ValueError, match=f"transition_matrix has spectral radius {radius:.6g}; .* below 1"):
        stationary(radius * torch.eye(2), torch.eye(2))


def test_least_squares_is_that_of_numpy_and_gives_the_same_bits_again() -> None:
    """Whatever freed memory holds that the solver is given to work in."""
    X, Y = normal(0, 100, 12), normal(1, 100, 2)
    first = least_squares(X, Y)
    assert_close(first, torch.from_numpy(np.linalg.lstsq(X.numpy(), Y.numpy())[0]))
    for k in range(100):
        torch.full((8 + k,), k % 3, dtype=torch.int32)
        assert torch.equal(least_squares(X, Y), first)
    alike = torch.cat([X, X[:, :1]], 1)
    assert_close(alike @ least_squares(alike, Y), X @ first, msg="columns that say the same")
