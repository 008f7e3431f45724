"""State -> observation or target, with covariance: fitted after training, by regression on the filter's beliefs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm_filter.core.linalg import cholesky_psd
from ldm_filter.models.turning import Turning
from ldm_filter.types import Gaussian

if TYPE_CHECKING:
    from ldm_filter.metrics import CovarianceRegression

__all__ = ["Readout", "Regression", "fit_readout", "split_off"]

FULL_COV_MOST = 32
# tau: below this share of the variance that is unknown of a direction of the state, its mean takes no part in a linear read-out.
UNKNOWN = 0.05
Regression = tuple[Gaussian, Tensor, Tensor]  # beliefs, targets, and which of them are observed


class Readout(Turning):
    """Maps a belief about the state to a Gaussian over targets.

        mean = W h + b + g(h),     cov = alpha J P J' + Sigma,    J = W + dg/dh

    g is absent (``"linear"``) or a small network (``"mlp"``). Sigma and alpha come from the residuals of the fit, so that the
    average covariance is the residuals': Sigma = residual - alpha mean(J P J') with the largest alpha <= 1 that leaves Sigma positive
    semi-definite. (Where the filter's own covariance already explains the residuals, nothing is added; where it overstates
    them, it is trusted in proportion.) With more than 32 targets only variances are kept.

    Errors that lie along the curve on which the targets move turn with it, which this covariance does not; see :class:`Turning`.

    Args:
        state_dim: n.
        target_dim: D, the number of targets after flattening.
        kind: ``"linear"`` or ``"mlp"``.

    Shapes:
        belief: mean ``(B, T, n)``, cov ``(1 | B, T, n, n)``. Output mean ``(B, T, D)``, cov ``(B, T, D, D)``.
    """

    weight: Tensor
    bias: Tensor
    state_mean: Tensor
    state_std: Tensor
    residual: Tensor
    trust: Tensor
    scale: Tensor

    def __init__(self, state_dim: int, target_dim: int, kind: str = "linear", hidden: int = 64) -> None:
        if kind not in ("linear", "mlp"):
            raise ValueError(f'readout is {kind!r}, expected "linear" or "mlp" (or "auto")')
        full = target_dim <= FULL_COV_MOST
        super().__init__(target_dim if full else 0)
        self.kind, self.full = kind, full
        self.register_buffer("weight", torch.zeros(target_dim, state_dim))
        self.register_buffer("bias", torch.zeros(target_dim))
        self.register_buffer("state_mean", torch.zeros(state_dim))
        self.register_buffer("state_std", torch.ones(state_dim))
        self.register_buffer("scale", torch.ones(target_dim))
        self.register_buffer("residual", torch.zeros((target_dim, target_dim) if self.full else (target_dim,)))
        self.register_buffer("trust", torch.ones(() if self.full else (target_dim,)))
        self.network: nn.Module | None = None
        if kind == "mlp":
            layers = [nn.Linear(state_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, target_dim)]
            self.network = nn.Sequential(*layers)

    def forward(self, belief: Gaussian) -> Gaussian:
        """Mean ``(B, T, D)`` and full covariance ``(B, T, D, D)``.

        Raises:
            ValueError: more than 32 targets; use :meth:`moments`.
        """
        if not self.full:
            raise ValueError(f"a full covariance of {len(self.bias)} targets is not kept (at most {FULL_COV_MOST}); use moments() for variances")
        spread = self.spread(belief)
        mean, cov = self.mean(belief.mean), self.trust * (spread @ spread.mT) + self.residual
        return Gaussian(mean, self.turned(mean, cov))

    @torch.no_grad()
    def turn(self, found: CovarianceRegression) -> None:
        """As of :class:`Turning`.

        Raises:
            ValueError: more than 32 targets, of which no covariance is kept.
        """
        if not self.full:
            raise ValueError(f"{len(self.bias)} targets are more than {FULL_COV_MOST}: only variances are kept, which cannot turn with the state")
        super().turn(found)

    def moments(self, belief: Gaussian) -> tuple[Tensor, Tensor]:
        """Mean and variances, ``(B, T, D)`` each."""
        if self.full:
            mean, cov = self(belief)
            return mean, cov.diagonal(dim1=-2, dim2=-1)
        return self.mean(belief.mean), self.trust * self.spread(belief).square().sum(-1) + self.residual

    def mean(self, states: Tensor) -> Tensor:
        """The targets' mean at given states ``(..., n)``."""
        linear = states @ self.weight.mT + self.bias
        if self.network is None:
            return linear
        return linear + self.scale * self.network((states - self.state_mean) / self.state_std)

    def spread(self, belief: Gaussian) -> Tensor:
        """J L with P = L L': the columns by which the targets move, ``(B, T, D, n)`` (``(1, T, D, n)`` where P and J are shared)."""
        factor = cholesky_psd(belief.cov, "belief.cov").to(belief.mean.dtype)
        if self.network is None:
            return self.weight @ factor
        columns = []
        for column in factor.expand(*belief.mean.shape[:-1], *factor.shape[-2:]).unbind(-1):
            columns.append(torch.func.jvp(self.mean, (belief.mean,), (column,))[1])
        return torch.stack(columns, dim=-1)


def fit_readout(
    belief: Gaussian,
    targets: Tensor,
    observed: Tensor,
    kind: str = "auto",
    held_out: Regression | None = None,
    generator: torch.Generator | None = None,
) -> Readout:
    """Regress targets on the filter's beliefs.

    Args:
        belief: filtered states of the training series, mean ``(B, T, n)``.
        targets: ``(B, T, D)``.
        observed: bool ``(B, T, D)``; hidden targets take no part.
        kind: ``"linear"`` (ridge regression, closed form), ``"mlp"`` (a network on top of it), or ``"auto"``: the network where it
            lowers the error on held-out data by more than 2 %.
        held_out: the same three of other series, where the kind is chosen and the covariance taken. Default: a network is judged on a fifth that
            is kept from it (of the series, or the end of each where there are fewer than five), the linear one on everything.
        generator: of the network's starting values and batches.

    Returns:
        The read-out, with covariance.

    Raises:
        ValueError: an unknown kind, or a target never observed.
    """
    if kind not in ("auto", "linear", "mlp"):
        raise ValueError(f'readout is {kind!r}, expected "auto", "linear" or "mlp"')
    if not bool(observed.flatten(0, -2).any(0).all()):
        raise ValueError(f"targets {(~observed.flatten(0, -2).any(0)).nonzero().flatten().tolist()} are never observed; leave them out")
    everything = belief, targets, observed
    if kind != "linear":
        training, judges = _apart(*everything) if held_out is None else (everything, held_out)
        linear, network = _linear(*training), Readout(belief.mean.shape[-1], targets.shape[-1], "mlp").to(belief.mean)
        network.load_state_dict(linear.state_dict(), strict=False)
        _fit_network(network, training[0].mean, *training[1:], generator or torch.Generator().manual_seed(0))
        if kind == "mlp" or _error(network, *judges) < 0.98 * _error(linear, *judges):
            _fit_covariance(network, *judges)
            return network
    linear = _linear(*everything)
    _fit_covariance(linear, *(held_out or everything))
    return linear


def split_off(belief: Gaussian, targets: Tensor, observed: Tensor) -> tuple[Regression, Regression]:
    """Four fifths and one fifth of the series, or, where there are fewer than five, of the steps."""
    series, steps = targets.shape[:2]
    by_series = series >= 5
    cut = series - series // 5 if by_series else steps - max(1, steps // 5)

    def part(tensor: Tensor, rows: slice) -> Tensor:
        shared = tensor.shape[0 if by_series else 1] == 1
        return tensor if shared else (tensor[rows] if by_series else tensor[:, rows])

    first, rest = ((Gaussian(*(part(x, rows) for x in belief)), part(targets, rows), part(observed, rows)) for rows in (slice(cut), slice(cut, None)))
    return first, rest


def _apart(belief: Gaussian, targets: Tensor, observed: Tensor) -> tuple[Regression, Regression]:
    """As `split_off`; everything twice where a part would lack a target."""
    parts = split_off(belief, targets, observed)
    enough = all(bool(seen.flatten(0, -2).any(0).all()) for _, _, seen in parts)
    return parts if enough else ((belief, targets, observed),) * 2


def _linear(belief: Gaussian, targets: Tensor, observed: Tensor) -> Readout:
    readout = Readout(belief.mean.shape[-1], targets.shape[-1], "linear").to(belief.mean)
    _fit_linear(readout, belief, targets, observed)
    return readout


@torch.no_grad()
def _fit_linear(readout: Readout, belief: Gaussian, targets: Tensor, observed: Tensor) -> None:
    """Least squares on the means h, with a ridge against directions of the state of which hardly anything is known.

        W = Cov(x, h) (C + tau^2 P C^-1 P + 1e-6 diag C)^-1,     C = Cov(h),  P the mean covariance of the beliefs

    That is a factor mu^2 / (mu^2 + tau^2) on the weight of a direction whose means vary by mu times the variance that is unknown: next to 1 where
    the means say something. Where they do not, plain least squares takes any weight, with which P would drown every interval.
    """
    states = belief.mean
    x, y, w = states.flatten(0, -2).double(), targets.flatten(0, -2).double(), observed.flatten(0, -2)
    readout.state_mean.copy_(x.mean(0))
    readout.state_std.copy_(x.std(0).clamp_min(1e-8))
    x = torch.cat([(x - readout.state_mean) / readout.state_std, torch.ones_like(x[:, :1])], dim=-1)
    ridge = 1e-6 * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    spread = belief.cov.double().flatten(0, -3).mean(0) / readout.state_std.double() / readout.state_std.double()[:, None]
    shifted = x[:, :-1].mT @ x[:, :-1] / len(x) + ridge[:-1, :-1]
    ridge[:-1, :-1] += UNKNOWN**2 * spread @ torch.linalg.solve(shifted, spread)
    if bool(w.all()):
        solution = torch.linalg.solve(x.mT @ x / len(x) + ridge, x.mT @ y / len(x)).mT
    else:  # every target has rows of its own
        rows = []
        for target, seen in zip(y.unbind(-1), w.unbind(-1), strict=True):
            own = x[seen]
            rows.append(torch.linalg.solve(own.mT @ own / len(own) + ridge, own.mT @ target[seen] / len(own)))
        solution = torch.stack(rows)
    weight = solution[:, :-1] / readout.state_std
    readout.weight.copy_(weight)
    readout.bias.copy_(solution[:, -1] - weight @ readout.state_mean.double())
    residual = (y - states.flatten(0, -2).double() @ weight.mT - readout.bias) * w
    readout.scale.copy_((residual.square().sum(0) / w.sum(0)).sqrt().clamp_min(1e-8))


def _fit_network(
    readout: Readout, states: Tensor, targets: Tensor, observed: Tensor, generator: torch.Generator, steps: int = 500, batch: int = 1024
) -> None:
    assert readout.network is not None
    _start(readout.network, generator)
    x, y, w = (part.flatten(0, -2) for part in (states, targets, observed.to(targets.dtype)))
    optimiser = torch.optim.Adam(readout.network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(x), (min(batch, len(x)),), generator=generator)
            error = (readout.mean(x[rows]) - y[rows]) / readout.scale * w[rows]
            optimiser.zero_grad()
            error.square().mean().backward()
            optimiser.step()
            schedule.step()
    for parameter in readout.network.parameters():
        parameter.requires_grad_(False)


def _start(network: nn.Module, generator: torch.Generator) -> None:
    """Uniform starting values from the generator given; the last layer at zero, so that the fit starts from the linear one."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            bound = 1.0 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2.0 - 1.0) * bound)
        layers[-1].weight.zero_()
        layers[-1].bias.zero_()


@torch.no_grad()
def _error(readout: Readout, belief: Gaussian, targets: Tensor, observed: Tensor) -> float:
    error = (readout.mean(belief.mean) - targets) / readout.scale * observed
    return float(error.square().sum() / observed.sum())


@torch.no_grad()
def _fit_covariance(readout: Readout, belief: Gaussian, targets: Tensor, observed: Tensor) -> None:
    """Sigma and alpha from residuals on held-out data; pairs of targets count where both are observed."""
    error = ((targets - readout.mean(belief.mean)) * observed).flatten(0, -2).double()
    seen = observed.flatten(0, -2).double()
    spread = readout.spread(belief).double()
    if not readout.full:
        residual = error.square().sum(0) / seen.sum(0).clamp_min(1.0)
        own = spread.square().sum(-1).flatten(0, -2).mean(0)
        trust = (residual / own.clamp_min(1e-300)).clamp_max(1.0)
        readout.trust.copy_(trust)
        readout.residual.copy_((residual - trust * own).clamp_min(1e-6 * residual))
        return
    residual = error.mT @ error / (seen.mT @ seen).clamp_min(1.0)
    residual = residual + 1e-9 * residual.diagonal().mean() * torch.eye(len(residual), dtype=residual.dtype, device=residual.device)
    own = (spread @ spread.mT).flatten(0, -3).mean(0)
    root = torch.linalg.cholesky(residual)
    relative = torch.linalg.solve_triangular(root, torch.linalg.solve_triangular(root, own, upper=False).mT, upper=False)
    share = min(1.0, 1.0 / max(float(torch.linalg.eigvalsh(relative)[-1]), 1e-300))
    readout.trust.fill_(share)
    # A sliver stays, so that no direction is ever claimed to be known exactly.
    readout.residual.copy_(residual - (1.0 - 1e-6) * share * own)
