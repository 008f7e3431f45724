"""State -> target with covariance, as parameters: a read-out that is trained through the filter, with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_filter.core.gaussian import log_density
from ldm_filter.models.factors import FLOOR, MOST_LOG
from ldm_filter.models.readout import FULL_COV_MOST, Readout
from ldm_filter.models.turning import Turning
from ldm_filter.types import Gaussian

__all__ = ["TargetHead"]


class TargetHead(Turning):
    """Maps a belief N(h, P) about the state to a Gaussian over targets, every number of it learned by the targets' likelihood.

        mean = centre + scale * (W s + b + g(s)),    cov = J P J' + L L',    J = d mean / d h,    s = (h - state_mean) / state_std

    ``"linear"``: no g, and one L. ``"mlp"``: g is a network, and L, lower triangular, is one of (s, log diag J P J'): what the filter's own
    covariance does not say, such as how the errors of targets on a curve turn with it. Afterwards the covariance may be set on held-out data, see
    :class:`~ldm_filter.models.turning.Turning`.

    Args:
        state_dim: n. target_dim: D, at most 32. kind: ``"linear"`` or ``"mlp"``. hidden: width of the networks.

    Shapes:
        belief: mean ``(B, T, n)``, cov ``(1 | B, T, n, n)``. Output mean ``(B, T, D)``, cov ``(B, T, D, D)``.

    Raises:
        ValueError: an unknown kind, or too many targets for a full covariance.
    """

    centre: Tensor
    scale: Tensor
    state_mean: Tensor
    state_std: Tensor
    full = True

    def __init__(self, state_dim: int, target_dim: int, kind: str = "mlp", hidden: int = 64) -> None:
        if kind not in ("linear", "mlp"):
            raise ValueError(f'the read-out of the targets is {kind!r}, expected "linear" or "mlp"')
        if target_dim > FULL_COV_MOST:
            raise ValueError(f"targets has {target_dim} channels, expected at most {FULL_COV_MOST}, for which a full covariance is kept")
        super().__init__(target_dim)
        self.kind, self.state_dim, self.target_dim = kind, state_dim, target_dim
        for name, value in (("centre", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full((target_dim,), value))
        for name, value in (("state_mean", 0.0), ("state_std", 1.0)):
            self.register_buffer(name, torch.full((state_dim,), value))
        self.weight, self.bias = nn.Parameter(torch.zeros(target_dim, state_dim)), nn.Parameter(torch.zeros(target_dim))
        self.factor = nn.Parameter(torch.zeros(target_dim, target_dim))
        if kind == "mlp":
            self.first, self.last = nn.Linear(state_dim, hidden), nn.Linear(hidden, target_dim, bias=False)
            self.spread = nn.Sequential(nn.Linear(state_dim + target_dim, hidden), nn.Tanh(), nn.Linear(hidden, target_dim * target_dim, bias=False))
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.spread[-1].weight)  # type: ignore[arg-type]

    def forward(self, belief: Gaussian) -> Gaussian:
        """Mean ``(B, T, D)`` and full covariance ``(B, T, D, D)``, the latter computed in float64."""
        state = (belief.mean - self.state_mean) / self.state_std
        mean, slope = self._mean(state)
        cov = slope.double() @ (belief.cov.double() / (self.state_std.double()[:, None] * self.state_std)) @ slope.double().mT
        residual = self._factor(state, cov)
        cov = (cov + residual @ residual.mT) * (self.scale.double()[:, None] * self.scale)
        mean = self.centre + self.scale * mean
        return Gaussian(mean, self.turned(mean, cov).to(mean.dtype))

    def moments(self, belief: Gaussian) -> tuple[Tensor, Tensor]:
        """Mean and variances, ``(B, T, D)`` each."""
        mean, cov = self(belief)
        return mean, cov.diagonal(dim1=-2, dim2=-1).expand_as(mean)

    def log_density(self, belief: Gaussian, targets: Tensor) -> tuple[Tensor, Tensor]:
        """log N(targets; mean, cov) of the known targets of each step ``(B, T)``, NaN where unknown; and the steps that have any."""
        known = ~torch.isnan(targets)
        mean, cov = self(belief)
        kept = known.to(mean.dtype)
        error = torch.where(known, targets.to(mean.dtype) - mean, torch.zeros_like(mean))
        cov = kept.unsqueeze(-1) * cov * kept.unsqueeze(-2) + torch.diag_embed(1.0 - kept)
        unknown = log_density(torch.zeros_like(error[0, 0, :1]), Gaussian(torch.zeros_like(error[0, 0, :1]), torch.eye(1).to(error)))
        return log_density(error, Gaussian(torch.zeros_like(error), cov)) - (1.0 - kept).sum(-1) * unknown, known.any(-1)

    @torch.no_grad()
    def start_from(self, readout: Readout, belief: Gaussian, targets: Tensor) -> None:
        """Start at a linear read-out fitted to beliefs of the training series, and its residual covariance.

        Args:
            readout: linear. belief: mean ``(B, T, n)``. targets: ``(B, T, D)``, NaN where unknown.
        """
        rows = targets.flatten(0, -2)
        for column, values in enumerate(rows.unbind(-1)):
            values = values[~torch.isnan(values)]
            self.centre[column], self.scale[column] = values.mean(), values.std(correction=0).clamp_min(1e-8)
        states = belief.mean.flatten(0, -2)
        self.state_mean.copy_(states.mean(0))
        self.state_std.copy_(states.std(0).clamp_min(1e-8))
        self.weight.copy_(readout.weight * self.state_std / self.scale[:, None])
        self.bias.copy_((readout.weight @ self.state_mean + readout.bias - self.centre) / self.scale)
        residual = (readout.scale / self.scale).clamp_min(1e-3)
        self.factor.copy_(torch.diag(residual.log()))

    def _mean(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The standardised mean and its slope ``(..., D, n)``; ``(D, n)`` where it is linear."""
        mean = state @ self.weight.mT + self.bias
        if self.kind == "linear":
            return mean, self.weight
        bent = torch.tanh(self.first(state))
        slope = ((1.0 - bent.square()).unsqueeze(-2) * self.last.weight) @ self.first.weight
        return mean + self.last(bent), self.weight + slope

    def _factor(self, state: Tensor, cov: Tensor) -> Tensor:
        """L, lower triangular with a positive diagonal, float64."""
        raw: Tensor = self.factor
        if self.kind == "mlp":
            own = cov.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12).log().to(state.dtype)
            seen = torch.cat([state, own.expand(*state.shape[:-1], -1) / 4.0], dim=-1)
            raw = raw + self.spread(seen).unflatten(-1, (self.target_dim, self.target_dim))
        raw = raw.double()
        return raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).clamp(max=MOST_LOG).exp() + FLOOR)
