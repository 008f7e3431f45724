"""Small dense linear algebra on covariances: symmetry, Cholesky factors that complain, shared-batch products."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "NotPositiveDefiniteError",
    "affine",
    "cholesky",
    "cholesky_psd",
    "least_squares",
    "matvec",
    "multiply_add",
    "round_cov",
    "solve_psd",
    "stationary",
    "symmetrise",
    "whiten",
]

# Relative jitters tried, in this order, on a singular covariance in float64.
_JITTERS = (1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8)


class NotPositiveDefiniteError(ValueError):
    """A covariance has no Cholesky factor."""


def symmetrise(matrix: Tensor) -> Tensor:
    """``(X + X') / 2`` for ``(..., n, n)``: takes out the asymmetry that rounding leaves."""
    return 0.5 * (matrix + matrix.mT)


def cholesky(cov: Tensor, what: str = "covariance") -> Tensor:
    """Lower Cholesky factor L, ``L L' = cov``.

    Args:
        cov: ``(..., n, n)``, symmetric positive definite.
        what: the name used in the error.

    Returns:
        ``(..., n, n)``, lower triangular.

    Raises:
        NotPositiveDefiniteError: (a ValueError) naming the first index that has no factor.

    >>> cholesky(torch.tensor([[4.0, 0.0], [0.0, 9.0]])).diagonal()
    tensor([2., 3.])
    """
    factor, info = torch.linalg.cholesky_ex(cov)
    failed = info.nonzero()
    if failed.shape[0]:
        index = failed[0].tolist()
        place = f"{what}{index}" if index else what
        raise NotPositiveDefiniteError(
            f"{place} is not positive definite (of {info.numel()} matrices, {failed.shape[0]} fail); expected a symmetric matrix with positive "
            "eigenvalues: check its scale and that no entry is NaN, or add a small multiple of the identity"
        )
    return factor


def cholesky_psd(cov: Tensor, what: str = "covariance") -> Tensor:
    """Lower factor of a positive *semi*-definite matrix, ``L L' = cov`` up to rounding; the factor is in float64.

    A matrix that has a Cholesky factor keeps it exactly. Only where there is none, the smallest sufficient multiple (at
    most 1e-8) of its own diagonal is added, so that a zero covariance gives a factor of practically zero.

    Args:
        cov: ``(..., n, n)``, symmetric, eigenvalues >= 0 up to rounding.
        what: the name used in the error.

    Returns:
        ``(..., n, n)``, lower triangular, float64.

    Raises:
        NotPositiveDefiniteError: where even the largest jitter is not enough.
    """
    cov = cov.double()
    factor, info = torch.linalg.cholesky_ex(cov)
    if not info.any():
        return factor
    diagonal = cov.detach().diagonal(dim1=-2, dim2=-1).clamp_min(0.0)
    jitter = torch.zeros_like(info, dtype=cov.dtype)
    for relative in _JITTERS:
        jitter = torch.where(info > 0, relative, jitter)
        # 1e-30 stands for the variance of a state that is known exactly: its root is far below rounding
        padded = cov + torch.diag_embed(jitter.unsqueeze(-1) * diagonal + (jitter > 0).to(cov.dtype).unsqueeze(-1) * 1e-30)
        _, info = torch.linalg.cholesky_ex(padded.detach())
        if not info.any():
            break
    return cholesky(padded, what)


def solve_psd(cov: Tensor, rhs: Tensor, what: str = "covariance") -> Tensor:
    """``cov^-1 rhs`` through a Cholesky factor, for a positive semi-definite ``cov`` ``(..., n, n)`` and ``rhs`` ``(..., n, k)``."""
    return torch.cholesky_solve(rhs.double(), cholesky_psd(cov, what))


def least_squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """The smallest ``W`` that minimises ``||X W - Y||``: inputs X ``(N, p)``, outputs Y ``(N, q)``, result ``(p, q)``.

    The same bits for the same numbers, which the default of ``torch.linalg.lstsq`` on the CPU (a pivoted factor) does not give.
    """
    return torch.linalg.lstsq(inputs, outputs, driver="gelsd" if inputs.device.type == "cpu" else None).solution


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """``M x`` for ``(..., p, q)`` and ``(..., q)``; a single matrix ``(p, q)`` is applied to all vectors in one product."""
    if matrix.dim() == 2:
        return vector @ matrix.mT
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def multiply_add(add: Tensor, left: Tensor, right: Tensor, sign: float = 1.0) -> Tensor:
    """``add + sign * left @ right`` for matrices with any leading dimensions, fused where torch has one operation for it."""
    if add.dim() == left.dim() == right.dim() == 2:
        return torch.addmm(add, left, right, alpha=sign)
    if left.dim() == right.dim() == 3 and left.shape[0] == right.shape[0]:
        return torch.baddbmm(add, left, right, alpha=sign)
    return torch.add(add, left @ right, alpha=sign)


def affine(add: Tensor, matrix: Tensor, vector: Tensor, sign: float = 1.0) -> Tensor:
    """``add + sign * M x``: matrix ``(..., p, q)``, vector ``(..., q)``."""
    if matrix.dim() == vector.dim() == 2:
        return torch.addmm(add, vector, matrix.mT, alpha=sign)
    if matrix.dim() == 2 and vector.dim() == 1:
        return torch.addmv(add, matrix, vector, alpha=sign)
    return torch.add(add, matvec(matrix, vector), alpha=sign)


def whiten(factor: Tensor, vector: Tensor) -> Tensor:
    """``L^-1 x`` along time: factor ``(1 | B, T, m, m)`` lower triangular, vector ``(B, T, m)``; a shared factor is not copied per series."""
    if factor.shape[0] == 1:
        columns = vector.permute(1, 2, 0)
        return torch.linalg.solve_triangular(factor[0], columns, upper=False).permute(2, 0, 1)
    return torch.linalg.solve_triangular(factor, vector.unsqueeze(-1), upper=False).squeeze(-1)


def round_cov(cov: Tensor, dtype: torch.dtype) -> Tensor:
    """The covariance in a coarser dtype, still positive definite.

    Rounding moves every correlation by up to eps, which can push an eigenvalue of n nearly dependent states below zero.
    Raising the variances by n eps, less than a reader of that dtype can tell from rounding, makes up for it.
    """
    if cov.dtype == dtype:
        return cov
    size = cov.shape[-1]
    lift = 1.0 + size * torch.finfo(dtype).eps * torch.eye(size, dtype=cov.dtype, device=cov.device)
    return (cov * lift).to(dtype)


def stationary(transition_matrix: Tensor, transition_cov: Tensor) -> Tensor:
    """Stationary covariance P of ``h_t = A h_{t-1} + w``: the solution of ``P = A P A' + Q``, by doubling.

    Differentiable (the gradient runs back through the about 10 to 40 doublings). Computed in float64.

    Args:
        transition_matrix: A, ``(..., n, n)``, spectral radius below 1.
        transition_cov: Q, ``(..., n, n)``, symmetric positive semi-definite.

    Returns:
        ``(..., n, n)`` in the dtype of Q.

    Raises:
        ValueError: where the spectral radius is not below 1: there is no stationary covariance.

    Source: the squared Smith method, R. A. Smith, SIAM J. Appl. Math. 16 (1968).

    >>> stationary(torch.tensor([[0.5]]).double(), torch.tensor([[3.0]]).double()).item()
    4.0
    """
    power, cov = transition_matrix.double(), transition_cov.double()
    for _ in range(60):
        cov = symmetrise(cov + power @ cov @ power.mT)
        power = power @ power
        size = power.detach().abs().amax()
        if size < 1e-20 or not torch.isfinite(size):
            break
    if not size < 1e-20:
        radius = torch.linalg.eigvals(transition_matrix.detach().double()).abs().amax().item()
        raise ValueError(f"transition_matrix has spectral radius {radius:.6g}; a stationary covariance needs it below 1: shrink the matrix")
    return round_cov(cov, transition_cov.dtype)
