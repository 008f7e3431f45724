"""Free parameters -> StateSpace: the latent linear-Gaussian model, stable by construction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_filter.types import Gaussian, StateSpace

__all__ = ["LinearDynamics"]


class LinearDynamics(nn.Module):
    """Time-invariant linear-Gaussian dynamics h_t = A h_{t-1} + (I - A) b + w,  w ~ N(0, Q),  z_t = C h_t + v.

    A is stable for every value of the parameters, and every stable A can be reached:

        A = S^-1 K S,    K = chol(D + W W')^-1 W,    so  K K' = I - L^-1 D L^-T < I  with  L = chol(D + W W')

    with W free, D a positive diagonal and S lower triangular. Any A of spectral radius below 1 is similar to such a contraction
    K through the Cholesky factor of its Lyapunov solution, which is how :meth:`set_matrices` finds the parameters of a given A.

    Args:
        state_dim: n.
        latent_dim: m <= n.
        transition_cov: ``"full"`` or ``"diagonal"`` Q.
        observation: ``"selector"`` for C = [I 0] or ``"learned"``.
        radius: modulus of A's eigenvalues at the start.
        generator: source of the starting values.

    Raises:
        ValueError: a size or name out of range.
    """

    def __init__(
        self,
        state_dim: int,
        latent_dim: int,
        transition_cov: str = "full",
        observation: str = "learned",
        radius: float = 0.95,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_choices(state_dim, latent_dim, transition_cov, observation)
        self.state_dim, self.latent_dim = state_dim, latent_dim
        self.full_cov, self.learned_observation = transition_cov == "full", observation == "learned"
        n, m = state_dim, latent_dim
        noise = torch.randn(n, n, generator=generator) * 0.1 / n**0.5
        self.contraction = nn.Parameter(torch.eye(n) + noise)
        self.slack = nn.Parameter(torch.full((n,), radius**-2 - 1.0).log())
        self.similarity = nn.Parameter(torch.zeros(n, n))
        self.mean = nn.Parameter(torch.zeros(n))
        self.cov_factor = nn.Parameter(torch.diag(torch.full((n,), -1.5)))
        self.initial_mean = nn.Parameter(torch.zeros(n))
        self.initial_factor = nn.Parameter(torch.zeros(n, n))
        selector = torch.eye(m, n)
        if self.learned_observation:
            spread = torch.randn(m, n, generator=generator) / n**0.5
            self.observation = nn.Parameter(torch.cat([selector[:, :m], spread[:, m:]], dim=-1))
        else:
            self.register_buffer("observation", selector)
        self.register_buffer("observation_offset", torch.zeros(m))

    @property
    def transition_matrix(self) -> Tensor:
        """A, ``(n, n)``, spectral radius below 1."""
        gram = torch.diag(self.slack.exp()) + self.contraction @ self.contraction.mT
        contraction = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), self.contraction, upper=False)
        similarity = _factor(self.similarity)
        return torch.linalg.solve_triangular(similarity, contraction @ similarity, upper=False)

    @property
    def transition_cov(self) -> Tensor:
        """Q, ``(n, n)``, positive definite."""
        factor = _factor(self.cov_factor if self.full_cov else torch.diag(self.cov_factor.diagonal()))
        return factor @ factor.mT

    def forward(self) -> StateSpace:
        """The model's matrices as a :class:`~ldm_filter.types.StateSpace` of constant fields."""
        transition = self.transition_matrix
        initial = _factor(self.initial_factor)
        return StateSpace(
            transition_matrix=transition,
            transition_offset=self.mean - transition @ self.mean,
            transition_cov=self.transition_cov,
            observation_matrix=self.observation,
            observation_offset=self.observation_offset,
            initial=Gaussian(self.initial_mean, initial @ initial.mT),
        )

    @torch.no_grad()
    def set_matrices(self, ssm: StateSpace) -> None:
        """Take over known matrices (for example of a subspace fit): the inverse of :meth:`forward`.

        Args:
            ssm: constant fields; the spectral radius of A below 1.

        Raises:
            ValueError: A is not stable, or C differs from [I 0] where the observation matrix is not learned.
        """
        transition = ssm.transition_matrix.double()
        eye = torch.eye(self.state_dim, dtype=torch.float64, device=transition.device)
        radius = float(torch.linalg.eigvals(transition).abs().max())
        if not radius < 1.0:
            raise ValueError(f"ssm.transition_matrix has spectral radius {radius:.6g}, expected below 1; shrink it first")
        if not self.learned_observation and not torch.allclose(ssm.observation_matrix, self.observation.to(ssm.observation_matrix), atol=1e-6):
            raise ValueError('ssm.observation_matrix is not [I 0]; choose observation="learned" to take it over')
        lyapunov = torch.linalg.cholesky(_lyapunov(transition, eye))
        contraction = torch.linalg.solve_triangular(lyapunov, transition @ lyapunov, upper=False)
        # I - K K' = M^-1 D M^-T with M^-1 unit lower triangular; then W = M K.
        residual = torch.linalg.cholesky(eye - contraction @ contraction.mT)
        diagonal = residual.diagonal()
        weight = torch.linalg.solve_triangular(residual / diagonal, contraction, upper=False)
        inverse = torch.linalg.solve_triangular(lyapunov, eye, upper=False)
        self.contraction.copy_(weight)
        self.slack.copy_(2.0 * diagonal.log())
        self.similarity.copy_(_unfactor(inverse))
        self.mean.copy_(torch.linalg.solve(eye - transition, ssm.transition_offset.double()))
        self.cov_factor.copy_(_unfactor(torch.linalg.cholesky(ssm.transition_cov.double())))
        self.initial_mean.copy_(ssm.initial.mean)
        self.initial_factor.copy_(_unfactor(torch.linalg.cholesky(ssm.initial.cov.double())))
        self.observation.copy_(ssm.observation_matrix)
        self.observation_offset.copy_(ssm.observation_offset)


def _factor(raw: Tensor) -> Tensor:
    """A lower-triangular factor with positive diagonal exp(raw_ii), kept above e^-12 so that no covariance becomes singular."""
    return raw.tril(-1) + torch.diag(raw.diagonal().clamp_min(-12.0).exp())


def _unfactor(factor: Tensor) -> Tensor:
    return factor.tril(-1) + torch.diag(factor.diagonal().log())


def _lyapunov(transition: Tensor, cov: Tensor) -> Tensor:
    """Solve P = A P A' + Q by doubling."""
    solution, power = cov, transition
    for _ in range(64):
        step = power @ solution @ power.mT
        solution, power = solution + step, power @ power
        if float(step.abs().max()) < 1e-14 * float(solution.abs().max()):
            break
    return 0.5 * (solution + solution.mT)


def _check_choices(state_dim: int, latent_dim: int, transition_cov: str, observation: str) -> None:
    if not 1 <= latent_dim <= state_dim:
        raise ValueError(f"latent_dim is {latent_dim}, expected 1 to state_dim = {state_dim}; raise state_dim or lower latent_dim")
    if transition_cov not in ("full", "diagonal"):
        raise ValueError(f'transition_cov is {transition_cov!r}, expected "full" or "diagonal"')
    if observation not in ("selector", "learned"):
        raise ValueError(f'observation is {observation!r}, expected "selector" or "learned"')
