"""A read-out moved towards one series of its own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ldm_filter.core.linalg import symmetrise
from ldm_filter.models.readout import Readout
from ldm_filter.types import Gaussian

__all__ = ["adapted_readout"]


@torch.no_grad()
def adapted_readout(readout: Readout, belief: Gaussian, targets: Tensor, observed: Tensor, known: Gaussian, weight: float) -> Readout:
    """Least squares on a series' own beliefs, with ``weight`` steps of the read-out so far beside them; the covariance of its residuals alike.

        [W b] = (sum x g' + weight [W0 b0] G0) (sum g g' + weight G0)^-1,     g = (h, 1),  G0 = E0[g g']
        Sigma = residual - alpha mean(J P J'), cut at positive; alpha stays: residuals of a fit's own data would have it too small

    Args:
        readout: it is not changed. Of one with a network g the linear part follows, x - g(h) in the place of x.
        belief: predicted states of the series, mean ``(B, T, n)``.
        targets, observed: ``(B, T, D)``; a step counts where all of its targets are observed.
        known: the distribution of states that the read-out so far was fitted on, ``(n,)`` and ``(n, n)``.
        weight: in steps, positive.
    """
    rows = observed.all(-1)
    if not bool(rows.any()):
        return readout
    own = copy.deepcopy(readout)
    g = torch.nn.functional.pad(belief.mean[rows].double(), (0, 1), value=1.0)
    before = torch.cat([readout.weight, readout.bias[:, None]], -1).double()
    x = targets[rows].double() - (readout.mean(belief.mean[rows]).double() - g @ before.mT)
    centre = torch.nn.functional.pad(known.mean.double(), (0, 1), value=1.0)
    prior = weight * (torch.nn.functional.pad(known.cov.double(), (0, 1, 0, 1)) + torch.outer(centre, centre))
    found = torch.linalg.solve(g.mT @ g + prior, (x.mT @ g + before @ prior).mT).mT
    own.weight.copy_(found[:, :-1])
    own.bias.copy_(found[:, -1])
    error = x - g @ found.mT
    expected = readout.trust.double() * _moved(readout, belief, rows) + readout.residual.double()
    moments = error.mT @ error if readout.full else error.square().sum(0)
    rest = (moments + weight * expected) / (len(error) + weight) - readout.trust.double() * _moved(own, belief, rows)
    own.residual.copy_(_positive(rest, expected))
    return own


def _positive(rest: Tensor, like: Tensor) -> Tensor:
    """A covariance ``(D, D)``, or variances ``(D,)``, cut at a millionth of what others are like."""
    if rest.ndim == 1:
        return rest.clamp_min(1e-6 * like.mean())
    values, vectors = torch.linalg.eigh(symmetrise(rest))
    return symmetrise((vectors * values.clamp_min(1e-6 * float(like.diagonal().mean()))) @ vectors.mT)


def _moved(readout: Readout, belief: Gaussian, rows: Tensor) -> Tensor:
    """Mean of J P J' over the rows, ``(D, D)``, or its diagonal ``(D,)`` where there are many targets."""
    columns = readout.spread(Gaussian(belief.mean, belief.cov)).double()
    columns = columns.expand(*rows.shape, *columns.shape[-2:])[rows]
    return (columns @ columns.mT).mean(0) if readout.full else columns.square().sum(-1).mean(0)
