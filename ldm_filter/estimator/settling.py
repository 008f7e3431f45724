"""After the training of polynomial dynamics: process noise that its rates had no time to take back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_filter.data.windows import Windows
from ldm_filter.estimator.context import to_device
from ldm_filter.estimator.inference import normalised_innovations
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.polynomial import PolynomialDynamics
from ldm_filter.types import Context, Gaussian

__all__ = ["settle_process_noise"]

RATIOS = tuple(2.0 ** (-k / 4) for k in range(33))
Measured = list[tuple[Gaussian, Tensor, Context]]


@torch.no_grad()
def settle_process_noise(model: LatentFilter, windows: Windows) -> float:
    """Narrow Q of polynomial dynamics as far as held-out windows ask for: Q <- r Q,  r one of 1, 2^-1/4, ..., 2^-8.

        l_i(r) = sum_t log N(e_t; 0, c S_t(r))       of window i's innovations, with the scale c of Q, R and P_0 together that is best for all windows

    r is the largest of those whose likelihood is behind the best one's by no more than one standard error over the windows. While the rates are
    high the motion shakes, and Q must hold that as well; when they fall, Q's own rate falls with them, and the state's covariance stays too wide.
    Innovations, in which R is most, hardly show it (NIS / m is 1 all the same), but their likelihood does.

    Args:
        model: changed in place; other dynamics, and noise that adapts, stay as they are. windows: held out from training.

    Returns:
        r; 1 where nothing was changed.

    Source:
        The rule of one standard error: Breiman, Friedman, Olshen & Stone 1984, Classification and Regression Trees, section 3.4.3.
    """
    dynamics = model.dynamics
    if not isinstance(dynamics, PolynomialDynamics) or dynamics.adaptive is not None:
        return 1.0
    measured, base = _measured(model, windows), dynamics.base
    fields, found = base.exact(), []
    for ratio in RATIOS:
        base.set_matrices(fields._replace(transition_cov=ratio * fields.transition_cov))
        found.append(_scaled_likelihood(dynamics, measured))
    best = max(found, key=lambda each: float(each.sum()))
    behind = [best - each for each in found]
    chosen = next(k for k, gap in enumerate(behind) if float(gap.sum()) <= _standard_error(gap))
    base.set_matrices(fields._replace(transition_cov=RATIOS[chosen] * fields.transition_cov))
    return RATIOS[chosen]


def _measured(model: LatentFilter, windows: Windows) -> Measured:
    device = model.encoder.center.device
    batches = windows.batches(64, shuffle=False)
    return [(*model.encode(part.values.to(device), part.observed.to(device)), to_device(part.context, device)) for part in batches]


def _scaled_likelihood(dynamics: PolynomialDynamics, measured: Measured) -> Tensor:
    """l_i ``(windows,)``, float64, with the common scale c = mean NIS / m of all windows, but for the volume that no covariance changes."""
    squares, plain, counts = [], [], []
    for measurements, seen, context in measured:
        result = dynamics.filter(measurements, seen, context)
        nis = normalised_innovations(measurements, result.projected, seen).double()
        squares.append(torch.where(seen, nis, 0.0).sum(-1))
        plain.append(torch.where(seen, result.log_likelihood.double(), 0.0).sum(-1))
        counts.append(seen.sum(-1).double())
    nis, density, steps = torch.cat(squares), torch.cat(plain), torch.cat(counts)
    scale, m = float(nis.sum() / steps.sum().clamp_min(1.0)), dynamics.latent_dim
    return density + 0.5 * m * (nis * (1.0 - 1.0 / scale) - steps * math.log(scale))


def _standard_error(gap: Tensor) -> float:
    """Of a sum over windows; infinite for a single one, which tells nothing about others."""
    return math.sqrt(len(gap)) * float(gap.std()) if len(gap) > 1 else math.inf
