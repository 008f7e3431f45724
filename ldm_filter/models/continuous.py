"""Dynamics in continuous time: a model of what happens between observations, whenever they come."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ldm_filter.core.discretise import Steps, discretise
from ldm_filter.core.linalg import cholesky, stationary, symmetrise
from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.canonical import canonical_transform, change_basis
from ldm_filter.models.dynamics import check_choices
from ldm_filter.models.factors import factor, unfactor
from ldm_filter.types import StateSpace

__all__ = ["ContinuousDynamics"]

# Least decay of any mode, per sampling interval: what rounding A to float32 cannot bridge.
MARGIN = 1e-5
# Largest logarithm in the factor of Q: a state renewed a million times per sampling interval is white noise, and beyond it rounding eats the margin.
MOST_LOG = 7.0
# Least variance that starting values leave the noise, per sampling interval (the states have variance 1).
LEAST = 1e-6


class ContinuousDynamics(AffineDynamics):
    """The linear stochastic differential equation dh = F (h - b) dt + B u dt + dW,  Cov(dW) = Q dt,  z_t = C h_t + D u_t + v_t.

        F = S - S' - Q / 2 - margin I

    is stable for every S and every positive definite Q. Nothing is lost: (F + margin I) P + P (F + margin I)' = -Q has a solution P for every F
    that decays faster than the margin, and in the basis in which P = I, F has this form; C (or, where that is [I 0], the encoder) takes
    up the change of basis. There the states have variance 1 (but for the margin), so Q is the rate at which they are renewed.
    Over a distance d in time h_t = A(d) h_{t-1} + w, Cov(w) = Q(d), from :func:`~ldm_filter.core.discretise.discretise`: distances that occur
    often are computed once. The unit of time is the sampling interval (:meth:`set_interval`). Inputs are held over the step that ends at their row.

    Args:
        state_dim: n.
        latent_dim: m <= n.
        transition_cov: ``"full"`` or ``"diagonal"`` Q (which loses nothing either: F is full).
        observation: ``"selector"`` for C = [I 0] or ``"learned"``.
        radius: modulus of the eigenvalues of A over one sampling interval at the start.
        generator: source of the starting values.
        input_dim: number of inputs.

    Raises:
        ValueError: a size, name or radius out of range.

    Example:
        >>> dynamics = ContinuousDynamics(3, 2, generator=torch.Generator().manual_seed(0))
        >>> half, whole = dynamics.steps(torch.tensor([0.5, 1.0])).transition.detach()
        >>> bool(torch.allclose(half @ half, whole))
        True
    """

    uses_time = "any"

    def __init__(
        self,
        state_dim: int,
        latent_dim: int,
        transition_cov: str = "full",
        observation: str = "learned",
        radius: float = 0.95,
        generator: torch.Generator | None = None,
        input_dim: int = 0,
    ) -> None:
        check_choices(state_dim, latent_dim, transition_cov, observation, radius)
        turn = torch.randn(state_dim, state_dim, generator=generator) * 0.1 / state_dim**0.5
        super().__init__(state_dim, latent_dim, transition_cov, observation, input_dim, generator)
        self.turn = nn.Parameter(turn)
        start = 0.5 * math.log(-2.0 * math.log(radius))
        with torch.no_grad():
            self.cov_factor.copy_(torch.full((state_dim,), start) if not self.full_cov else torch.diag(torch.full((state_dim,), start)))

    @property
    def drift(self) -> Tensor:
        """F, ``(n, n)`` float64, per sampling interval."""
        return self._drift(self.noise_cov())

    def noise_cov(self) -> Tensor:
        """Q, the covariance of the noise per sampling interval, ``(n, n)`` float64."""
        raw = self.cov_factor
        if raw.ndim == 1:
            return torch.diag(factor(raw.clamp(max=MOST_LOG)).square())
        root = factor(raw.tril(-1) + torch.diag(raw.diagonal().clamp(max=MOST_LOG)))
        return root @ root.mT

    def steps(self, distance: Tensor | None) -> Steps:
        """A(d), its integral and Q(d), for distances in sampling intervals."""
        cov = self.noise_cov()
        if distance is None:
            return Steps(*(part[0] for part in discretise(self._drift(cov), cov, cov.new_ones(1))))
        return discretise(self._drift(cov), cov, distance)

    def _drift(self, cov: Tensor) -> Tensor:
        turn = self.turn.double()
        return turn - turn.mT - 0.5 * cov - MARGIN * torch.eye(self.state_dim, dtype=cov.dtype, device=cov.device)

    @torch.no_grad()
    def health(self) -> dict[str, float]:
        """The spectral radius of A over one sampling interval."""
        return {"radius": math.exp(float(torch.linalg.eigvals(self.drift).real.max()))}

    @torch.no_grad()
    def set_drift(self, drift: Tensor, diffusion: Tensor) -> Tensor:
        """Take over known F and Q, per sampling interval; returns T ``(n, n)``, by which the state changes: h_new = T h.

        C, B, the mean and the initial belief are left to the caller.

        Raises:
            ValueError: F decays more slowly than the margin; Q is not positive definite, or in the new basis not diagonal where that was chosen.
        """
        drift, diffusion = drift.double(), diffusion.double()
        eye = torch.eye(self.state_dim, dtype=drift.dtype, device=drift.device)
        slowest = float(torch.linalg.eigvals(drift).real.max())
        if not slowest < -MARGIN:
            raise ValueError(
                f"drift has an eigenvalue with real part {slowest:.3g}, expected below {-MARGIN:g}: a stable F; subtract a multiple of I"
            )
        # P of (F + margin) P + P (F + margin)' = -Q: the stationary covariance of any sampling of that equation
        shifted = drift + MARGIN * eye
        sampled = discretise(shifted, diffusion, drift.new_ones(1))
        root = cholesky(stationary(sampled.transition[0], sampled.cov[0]), "the stationary covariance")
        inside = torch.linalg.solve_triangular(root, shifted @ root, upper=False)
        half = torch.linalg.solve_triangular(root, cholesky(diffusion, "diffusion"), upper=False)
        transform = torch.linalg.solve_triangular(root, eye, upper=False)
        if not self.full_cov:
            basis = torch.linalg.eigh(symmetrise(half @ half.mT)).eigenvectors
            inside, half, transform = basis.mT @ inside @ basis, basis.mT @ half, basis.mT @ transform
        self._set(inside, symmetrise(half @ half.mT))
        return transform

    def _set(self, inside: Tensor, cov: Tensor) -> None:
        """S and Q; ``inside``: F + margin I in the basis of the states of variance 1."""
        self.turn.copy_(0.25 * (inside - inside.mT))
        self.cov_factor.copy_(unfactor(cholesky(cov, "diffusion")) if self.full_cov else unfactor(torch.diag(cov.diagonal().sqrt())).diagonal())

    @torch.no_grad()
    def scale_covariances(self, factor: float) -> bool:
        """Q and P_0 times a factor; as the states keep variance 1, it is the observation that grows."""
        if not self.learned_observation:
            return False
        root = factor**0.5
        self.observation.mul_(root)
        for part in (self.mean, self.initial_mean, *((self.input_matrix,) if self.input_dim else ())):
            part.div_(root)
        return True

    @torch.no_grad()
    def canonicalise(self) -> Tensor:
        """The slowest decay first, see :func:`~ldm_filter.models.canonical.canonical_transform`; the states have variance 1 already."""
        if not self.learned_observation:
            super().canonicalise()
        ssm, drift, cov = self.exact(), self.drift, self.noise_cov()
        transition, eye = ssm.transition_matrix, torch.eye(self.state_dim).to(drift)
        if self.full_cov:
            whitened = ssm._replace(transition_cov=symmetrise(eye - transition @ transition.mT))
            left, _, right = torch.linalg.svd(canonical_transform(whitened))
            transform = left @ right  # orthogonal, but for rounding, before
        else:  # Q has to stay diagonal: by rising rate of renewal
            order = cov.diagonal().argsort()
            columns = ssm.observation_matrix[:, order]
            largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))[0]
            transform = torch.where(largest < 0, -1.0, 1.0)[:, None] * eye[order]
        self._set(transform @ (drift + MARGIN * eye) @ transform.mT, symmetrise(transform @ cov @ transform.mT))
        self._move(ssm, transform)
        return transform

    @torch.no_grad()
    def start_from(self, ssm: StateSpace, interval: float = 1.0) -> None:
        """The nearest model in continuous time: F = log A, and Q from it and the stationary covariance."""
        root = cholesky(stationary(ssm.transition_matrix.double(), ssm.transition_cov.double()), "the stationary covariance")
        eye = torch.eye(self.state_dim, dtype=root.dtype, device=root.device)
        transform = torch.linalg.solve_triangular(root, eye, upper=False)
        whitened = transform @ ssm.transition_matrix.double() @ root
        inside = torch.as_tensor(_real_logarithm(whitened.cpu().numpy())).to(root) / interval
        rates, basis = torch.linalg.eigh(-(inside + inside.mT))
        if not self.full_cov:
            inside, transform, basis = basis.mT @ inside @ basis, basis.mT @ transform, eye
        self._set(inside, symmetrise(basis @ torch.diag(rates.clamp_min(LEAST)) @ basis.mT))
        self._move(ssm, transform)

    def _move(self, ssm: StateSpace, transform: Tensor) -> None:
        """Everything but F and Q, taken from a model whose state h becomes T h."""
        transition = ssm.transition_matrix.double()
        eye = torch.eye(self.state_dim).to(transition)
        mean = torch.linalg.solve(eye - transition, ssm.transition_offset.double())
        moved = change_basis(ssm, transform)
        self.mean.copy_(transform @ mean)
        self.initial_mean.copy_(moved.initial.mean)
        self.initial_factor.copy_(unfactor(cholesky(moved.initial.cov.double(), "ssm.initial.cov")))
        if self.learned_observation:
            self.observation.copy_(moved.observation_matrix)
        self.observation_offset.copy_(ssm.observation_offset)
        self._move_inputs(transform)


def _real_logarithm(matrix: np.ndarray) -> np.ndarray:
    """The principal logarithm; a negative eigenvalue, which has no real one (it alternates from row to row), counts by its modulus."""
    values, vectors = np.linalg.eig(matrix)
    values = np.where((np.abs(values.imag) < 1e-12) & (values.real < 0), np.abs(values), values)
    values = np.where(np.abs(values) < 1e-3, 1e-3, values)
    return np.asarray((vectors @ np.diag(np.log(values.astype(complex))) @ np.linalg.inv(vectors)).real)
