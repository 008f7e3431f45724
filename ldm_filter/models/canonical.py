"""One form of the latent state out of all the equivalent ones, so that two fits can be compared."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import lapack, schur
from torch import Tensor

from ldm_filter.core.linalg import cholesky, stationary, symmetrise
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["canonical_transform", "change_basis"]


def canonical_transform(ssm: StateSpace, diagonal_cov: bool = False) -> Tensor:
    """The change of state h' = T h that gives unit stationary covariance and modes ordered by time-scale.

        T = U' L^-1,   P = A P A' + Q = L L',   U the ordered real Schur basis of L^-1 A L

    In the new basis the stationary covariance is the identity and the transition matrix block upper triangular, with 1 x 1 blocks
    (real modes) and 2 x 2 blocks (oscillations) in order of falling modulus of the eigenvalue, that is the slowest decay first. Within an
    oscillation the state that is seen more strongly, by the norm of its column of the observation matrix, comes first, and the two
    columns are orthogonal. Each state's sign makes its largest entry in the observation matrix positive. That leaves open: the phase
    within an oscillation whose two states are seen equally strongly, and the order of modes that decay equally fast. T is invertible:
    ``change_basis(ssm, T)`` and then ``change_basis(_, T^-1)`` is the identity.

    Where Q has to stay diagonal, U is instead the eigenbasis of L^-1 Q L^-T: the states are ordered by rising variance of their
    innovation, that is the most predictable first, and A is full.

    Args:
        ssm: constant fields, A stable.
        diagonal_cov: keep Q diagonal.

    Returns:
        T, ``(n, n)``, float64.

    Raises:
        ValueError: A not stable, or a direction of the state that never moves.
    """
    transition, cov = ssm.transition_matrix.detach().double(), ssm.transition_cov.detach().double()
    factor = cholesky(stationary(transition, cov), "the stationary covariance of ssm")
    observation = ssm.observation_matrix.detach().double() @ factor
    if diagonal_cov:
        whitened = torch.linalg.solve_triangular(factor, cov, upper=False)
        basis = torch.linalg.eigh(symmetrise(torch.linalg.solve_triangular(factor, whitened.mT, upper=False))).eigenvectors
    else:
        whitened = torch.linalg.solve_triangular(factor, transition @ factor, upper=False)
        form, schur_basis = _ordered_schur(whitened.cpu().numpy())
        basis = torch.as_tensor(schur_basis, device=factor.device)
        for start in _block_starts(form):
            if _block_size(form, start) == 2:
                pair = basis[:, start : start + 2]
                basis[:, start : start + 2] = pair @ torch.linalg.svd(observation @ pair).Vh.mT
    observation = observation @ basis
    largest = observation.gather(0, observation.abs().argmax(0, keepdim=True))[0]
    signs = torch.where(largest < 0, -1.0, 1.0)
    eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return (signs * basis).mT @ torch.linalg.solve_triangular(factor, eye, upper=False)


def change_basis(ssm: StateSpace, transform: Tensor) -> StateSpace:
    """The same model of the observations with the state h' = T h.

        A' = T A T^-1,   a' = T a,   Q' = T Q T',   C' = C T^-1

    Args:
        ssm: constant fields.
        transform: T, ``(n, n)``, invertible.

    Returns:
        The model in the new basis, in the dtype of ``ssm``.
    """
    dtype = ssm.transition_matrix.dtype
    t = transform.double()
    inverse = torch.linalg.inv(t)

    def congruent(cov: Tensor) -> Tensor:
        moved = t @ cov.double() @ t.mT
        return (0.5 * (moved + moved.mT)).to(dtype)

    return StateSpace(
        transition_matrix=(t @ ssm.transition_matrix.double() @ inverse).to(dtype),
        transition_offset=(t @ ssm.transition_offset.double()).to(dtype),
        transition_cov=congruent(ssm.transition_cov),
        observation_matrix=(ssm.observation_matrix.double() @ inverse).to(dtype),
        observation_offset=ssm.observation_offset,
        initial=Gaussian((t @ ssm.initial.mean.double()).to(dtype), congruent(ssm.initial.cov)),
    )


def _ordered_schur(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """U' M U and U orthogonal, block triangular, blocks by falling modulus of their eigenvalues (selection sort of blocks)."""
    form, basis = schur(matrix, output="real")
    place = 0
    while place < len(form):
        rest = [start for start in _block_starts(form) if start >= place]
        slowest = max(rest, key=lambda start: (round(_modulus(form, start), 9), -start))
        if slowest != place:
            form, basis, _ = lapack.dtrexc(form, basis, slowest + 1, place + 1)
        place += _block_size(form, place)
    return form, basis


def _block_size(form: np.ndarray, start: int) -> int:
    return 2 if start + 1 < len(form) and form[start + 1, start] != 0.0 else 1


def _block_starts(form: np.ndarray) -> list[int]:
    starts = [0]
    while starts[-1] + _block_size(form, starts[-1]) < len(form):
        starts.append(starts[-1] + _block_size(form, starts[-1]))
    return starts


def _modulus(form: np.ndarray, start: int) -> float:
    block = slice(start, start + _block_size(form, start))
    return float(np.abs(np.linalg.eigvals(form[block, block])).max())
