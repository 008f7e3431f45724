"""A covariance of targets that, after training, comes to depend on the estimate: for every kind of read-out alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm_filter.core.linalg import cholesky_psd

if TYPE_CHECKING:
    from ldm_filter.metrics import CovarianceRegression

__all__ = ["Turning"]


class Turning(nn.Module):
    """A read-out of D targets whose covariance L L' is at first as it comes, and after :meth:`turn` or :meth:`scale_covariance`

        s L M(mean) L',    M(x) = Psi + (B u)(B u)',    u = (1, (x - centre) / scale),    s = exp(power (log det(L L') / D - level))

    Args:
        turned: D, or 0 where no full covariance is kept, so that nothing can turn.
    """

    turn_base: Tensor
    turn_direction: Tensor
    turn_centre: Tensor
    turn_scale: Tensor
    turn_power: Tensor
    turn_level: Tensor

    def __init__(self, turned: int) -> None:
        super().__init__()
        self.register_buffer("turn_base", torch.eye(turned))
        self.register_buffer("turn_direction", torch.zeros(turned, 1 + turned))
        self.register_buffer("turn_centre", torch.zeros(turned))
        self.register_buffer("turn_scale", torch.ones(turned))
        self.register_buffer("turn_power", torch.zeros(()))
        self.register_buffer("turn_level", torch.zeros(()))

    def turned(self, mean: Tensor, cov: Tensor) -> Tensor:
        """The covariance ``(..., D, D)`` at estimates ``(..., D)``, of what it is before."""
        if not bool(self.turn_direction.any()) and torch.equal(self.turn_base, torch.eye(len(self.turn_base)).to(self.turn_base)):
            return cov
        regressors = torch.cat([torch.ones_like(mean[..., :1]), (mean - self.turn_centre) / self.turn_scale], dim=-1)
        along = (regressors @ self.turn_direction.mT).unsqueeze(-1)
        factor = cholesky_psd(cov).to(mean.dtype)
        size = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().mean(-1)
        growth = (self.turn_power * (size - self.turn_level)).exp()[..., None, None]
        return (growth * (factor @ (self.turn_base + along @ along.mT) @ factor.mT)).to(cov.dtype)

    @torch.no_grad()
    def turn(self, found: CovarianceRegression) -> None:
        """Let the covariance depend on the mean: by `ldm_filter.metrics.covariance_regression` of the errors under what it gives before."""
        for name in ("base", "direction", "centre", "scale", "power", "level"):
            getattr(self, f"turn_{name}").copy_(torch.as_tensor(getattr(found, name)))

    @torch.no_grad()
    def straighten(self) -> None:
        """The covariance as it comes again."""
        for name, start in Turning(len(self.turn_base)).named_buffers():
            getattr(self, name).copy_(start)

    @torch.no_grad()
    def scale_covariance(self, factor: float) -> None:
        """Multiply all covariances by one factor, which Psi and B take up."""
        self.turn_base.mul_(factor)
        self.turn_direction.mul_(factor**0.5)
