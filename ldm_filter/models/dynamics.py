"""Free parameters -> StateSpace: the latent linear-Gaussian model, stable by construction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_filter.core.discretise import Steps, power_steps
from ldm_filter.core.linalg import NotPositiveDefiniteError, cholesky, stationary, symmetrise
from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.canonical import canonical_transform, change_basis
from ldm_filter.models.factors import factor as lower
from ldm_filter.models.factors import unfactor
from ldm_filter.types import StateSpace

__all__ = ["LinearDynamics", "check_choices", "stable_matrix", "whole_intervals"]

# A's spectral radius stays this far below 1, which rounding a matrix of many states to float32 cannot bridge.
MARGIN = 1e-5
# exp of half of this is still finite, and squared it is.
MOST_SLACK = 60.0
# How far a time step may lie from a whole number of sampling intervals.
OFF_GRID = 0.1


class LinearDynamics(AffineDynamics):
    """Time-invariant linear-Gaussian dynamics h_t = A h_{t-1} + (I - A) b + w,  w ~ N(0, Q),  z_t = C h_t + v.

    A is stable for every value of the parameters, and every stable A can be reached:

        A = (1 - margin) S^-1 K S,    [W  D^1/2] = L [K  G],  L lower triangular, rows of [K  G] orthonormal

    with W free, D a positive diagonal and S a fixed basis, I at the start. K, a block of an orthonormal matrix, is a contraction
    whatever the scale and rounding of W and D, and every contraction has this form. In the basis in which the stationary covariance is I
    every stable A is a contraction: nothing is lost with S = I, since the observation matrix (or, where that is [I 0], the encoder) takes
    up the change of basis. S is there for :meth:`set_matrices`, which takes over a given A in the basis in which it came.

    Args:
        state_dim: n.
        latent_dim: m <= n.
        transition_cov: ``"full"`` or ``"diagonal"`` Q.
        observation: ``"selector"`` for C = [I 0] or ``"learned"``.
        radius: modulus of A's eigenvalues at the start, between 0 and 1.
        generator: source of the starting values.
        input_dim: number of inputs.

    Raises:
        ValueError: a size, name or radius out of range.

    Example:
        >>> ssm = LinearDynamics(3, 2, radius=0.9, generator=torch.Generator().manual_seed(0))()
        >>> 0.8 < float(torch.linalg.eigvals(ssm.transition_matrix.detach()).abs().max()) < 1.0
        True
    """

    basis: Tensor
    uses_time = "grid"

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
        noise = torch.randn(state_dim, state_dim, generator=generator) * 0.1 / state_dim**0.5
        super().__init__(state_dim, latent_dim, transition_cov, observation, input_dim, generator)
        self.contraction = nn.Parameter(torch.eye(state_dim) + noise)
        self.slack = nn.Parameter(torch.full((state_dim,), radius**-2 - 1.0).log())
        self.register_buffer("basis", torch.eye(state_dim))

    @property
    def transition_matrix(self) -> Tensor:
        """A, ``(n, n)``, spectral radius below 1."""
        return self._transition().to(self.mean.dtype)

    @property
    def transition_cov(self) -> Tensor:
        """Q, ``(n, n)``, positive definite."""
        return self().transition_cov

    def steps(self, distance: Tensor | None) -> Steps:
        """A^k, its sum and the noise of k steps.

        Raises:
            ValueError: a distance that is no whole number of sampling intervals, within a tenth.
        """
        transition, cov = self._transition(), self.noise_cov()
        if distance is None:
            return Steps(transition, torch.eye(self.state_dim, dtype=cov.dtype, device=cov.device), cov)
        return power_steps(transition, cov, whole_intervals(distance, self.interval))

    def _transition(self) -> Tensor:
        return stable_matrix(self.contraction, self.slack, self.basis)

    @torch.no_grad()
    def health(self) -> dict[str, float]:
        """The spectral radius of A."""
        return {"radius": float(torch.linalg.eigvals(self.exact().transition_matrix).abs().max())}

    @torch.no_grad()
    def scale_covariances(self, factor: float) -> bool:
        """Q <- factor Q, P_0 <- factor P_0; A keeps its parameters, beside which others may stand in the same basis."""
        for raw in (self.cov_factor, self.initial_factor):
            root = lower(raw) * factor**0.5
            raw.copy_(unfactor(root) if root.ndim == 2 else unfactor(torch.diag(root)).diagonal())
        return True

    @torch.no_grad()
    def canonicalise(self) -> Tensor:
        """Bring the state to its canonical form, see :func:`~ldm_filter.models.canonical.canonical_transform`."""
        if not self.learned_observation:
            super().canonicalise()
        ssm = self.exact()
        transform = canonical_transform(ssm, diagonal_cov=not self.full_cov)
        self.set_matrices(change_basis(ssm, transform))
        self._move_inputs(transform)
        return transform

    def start_from(self, ssm: StateSpace, interval: float = 1.0) -> None:
        """As :meth:`set_matrices`; rows count as steps."""
        self.set_matrices(ssm)

    @torch.no_grad()
    def set_matrices(self, ssm: StateSpace) -> None:
        """Take over known matrices (for example of a subspace fit): the inverse of :meth:`forward`.

        Args:
            ssm: constant fields; the spectral radius of A below 1 - 1e-5.

        Raises:
            ValueError: a field of another shape; A not stable, or so far from normal that rounding makes it unstable; a covariance that is not
                positive definite; Q not diagonal or C not [I 0] where that was chosen. Nothing is changed then.
        """
        self._check_matrices(ssm)
        eye = torch.eye(self.state_dim, dtype=torch.float64, device=self.mean.device)
        transition = _shrunk(ssm.transition_matrix.double())
        root = cholesky(ssm.transition_cov.double(), "ssm.transition_cov")
        initial = cholesky(ssm.initial.cov.double(), "ssm.initial.cov")
        try:
            basis = _contracting_basis(transition / (1.0 - MARGIN), eye).to(self.basis.dtype).double()
            contraction = torch.linalg.solve_triangular(basis, basis @ transition, upper=False, left=False) / (1.0 - MARGIN)
            rest = cholesky(symmetrise(eye - contraction @ contraction.mT))
        except NotPositiveDefiniteError as error:
            raise ValueError(
                "ssm.transition_matrix is stable but so far from normal (its powers grow that much before they fall) that rounding makes it "
                "unstable; scale the states differently, for example by their stationary standard deviations"
            ) from error
        # I - K K' = M^-1 D M^-T with M^-1 unit lower triangular; then W = M K.
        diagonal = rest.diagonal()
        self.basis.copy_(basis)
        self.contraction.copy_(torch.linalg.solve_triangular(rest / diagonal, contraction, upper=False))
        self.slack.copy_(2.0 * diagonal.log())
        self.mean.copy_(torch.linalg.solve(eye - transition, ssm.transition_offset.double()))
        self.cov_factor.copy_(unfactor(root) if self.full_cov else unfactor(root).diagonal())
        self.initial_mean.copy_(ssm.initial.mean)
        self.initial_factor.copy_(unfactor(initial))
        self.observation.copy_(ssm.observation_matrix)
        self.observation_offset.copy_(ssm.observation_offset)

    def _check_matrices(self, ssm: StateSpace) -> None:
        n, m = self.state_dim, self.latent_dim
        shapes = ((n, n), (n,), (n, n), (m, n), (m,), (n,), (n, n))
        names = [*(f"ssm.{name}" for name in ssm._fields[:-1]), "ssm.initial.mean", "ssm.initial.cov"]
        for name, value, shape in zip(names, (*ssm[:-1], *ssm.initial), shapes, strict=True):
            if value.shape != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected the constant {shape} of state_dim = {n}, latent_dim = {m}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} holds a number that is not finite; expected finite numbers")
        cov = ssm.transition_cov
        if not self.full_cov and float((cov - torch.diag(cov.diagonal())).abs().max()) > 1e-6 * float(cov.diagonal().max()):
            raise ValueError('ssm.transition_cov is not diagonal; choose transition_cov="full" to take it over')
        if not self.learned_observation and not torch.allclose(ssm.observation_matrix, self.observation.to(ssm.observation_matrix), atol=1e-6):
            raise ValueError('ssm.observation_matrix is not [I 0]; choose observation="learned" to take it over')


def stable_matrix(contraction: Tensor, slack: Tensor, basis: Tensor) -> Tensor:
    """A of :class:`LinearDynamics` from its free parameters W ``(..., n, n)``, log D ``(..., n)`` and the basis S ``(n, n)``, in float64.

    Matrices of one basis are contractions in it, so that whatever lies between them is one too.
    """
    root = (0.5 * slack.double().clamp(-MOST_SLACK, MOST_SLACK)).exp()
    rows, triangle = torch.linalg.qr(torch.cat([contraction.double().mT, torch.diag_embed(root)], dim=-2))
    sign = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    contracted = (1.0 - MARGIN) * (rows[..., : basis.shape[-1], :] * sign.unsqueeze(-2)).mT
    return torch.linalg.solve_triangular(basis.double(), contracted @ basis.double(), upper=False)


def _shrunk(transition: Tensor) -> Tensor:
    """A, refused where it is not stable enough; a matrix on the very edge (as training may leave it) is moved inside by 1e-7."""
    ratio = float(torch.linalg.eigvals(transition).abs().max()) / (1.0 - MARGIN)
    if not ratio < 1.0 + 1e-9:
        raise ValueError(
            f"ssm.transition_matrix has spectral radius {ratio * (1.0 - MARGIN):.8g}, expected below 1 - {MARGIN:g}; "
            "multiply it by a number below 1 first"
        )
    return transition * min(1.0, (1.0 - 1e-7) / max(ratio, 0.5))


def _contracting_basis(transition: Tensor, eye: Tensor) -> Tensor:
    """Lower-triangular S for which S A S^-1 is a contraction: I where A is one, else the root of P^-1, P = A P A' + I."""
    if float(torch.linalg.matrix_norm(transition, 2)) < 1.0 - 1e-9:
        return eye
    return torch.linalg.solve_triangular(cholesky(stationary(transition, eye)), eye, upper=False)


def whole_intervals(distance: Tensor, interval: float) -> Tensor:
    """Distances in sampling intervals as whole numbers, at least 1.

    Raises:
        ValueError: one that is no whole number of sampling intervals, within a tenth.
    """
    count = distance.round().clamp_min(1.0)
    off = (distance - count).abs() > OFF_GRID
    if bool(off.any()):
        raise ValueError(
            f"context.dt has a time step of {float(distance[off][0]):.4g} sampling intervals of {interval:g}, expected whole numbers "
            f'within {OFF_GRID}; use dynamics="continuous" for irregular times'
        )
    return count.long()


def check_choices(state_dim: int, latent_dim: int, transition_cov: str, observation: str, radius: float) -> None:
    if not 1 <= latent_dim <= state_dim:
        raise ValueError(f"latent_dim is {latent_dim}, expected 1 to state_dim = {state_dim}; raise state_dim or lower latent_dim")
    if transition_cov not in ("full", "diagonal"):
        raise ValueError(f'transition_cov is {transition_cov!r}, expected "full" or "diagonal"')
    if observation not in ("selector", "learned"):
        raise ValueError(f'observation is {observation!r}, expected "selector" or "learned"')
    if not 0.0 < radius < 1.0:
        raise ValueError(f"radius is {radius}, expected a number between 0 and 1, the modulus of A's eigenvalues at the start")
