"""After the training of polynomial dynamics: process noise that its rates had no time to take back."""

from __future__ import annotations

import math
from itertools import islice

import torch
from torch import Tensor

from ldm_filter.data.windows import Windows
from ldm_filter.estimator.context import to_device
from ldm_filter.estimator.inference import normalised_innovations
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.polynomial import PolynomialDynamics
from ldm_filter.types import Context, Gaussian

__all__ = ["settle_process_noise"]

RATIOS = tuple(2.0 ** (-k / 4) for k in range(25))
OCTAVE = 4  # ratios in a factor of two
MOST_WINDOWS = 2000
BATCH = 64
HELD_OUT_ERRORS, ALL_ERRORS = 1.0, 3.0  # standard errors that a likelihood may be behind the best
Measured = list[tuple[Gaussian, Tensor, Context]]


@torch.no_grad()
def settle_process_noise(model: LatentFilter, held_out: Windows, training: Windows) -> float:
    """Narrow Q of polynomial dynamics as far as windows ask for without a doubt: Q <- r Q,  r one of 1, 2^-1/4, ..., 2^-6.

        l_i(r) = sum_t log N(e_t; 0, c S_t(r))       of window i's innovations, with the scale c of Q, R and P_0 together that is best for all windows

    While the rates are high the motion shakes, and Q must hold that as well; when they fall, Q's own rate falls with them, and the state's
    covariance stays too wide. Innovations, in which R is most, hardly show it (NIS / m is 1 all the same), but their likelihood does.

    r is the larger of what two comparisons ask for, each the largest whose likelihood is behind the best one's by so many standard errors over
    the windows. Held-out windows, one error: what the motion was fitted on flatters it where data are few. All windows (some 2000 of training
    at most), three errors: held-out windows are few, and once r Q is small beside R their likelihood is flat, so that chance would decide how far
    it falls. Three, and not one, because the two sides are not alike: an error of the motion persists while the state lingers, and grows to
    more than white noise of its size would; innovations hardly show that Q is too narrow, and the state's covariance falls short by all of it.

    Args:
        model: changed in place; other dynamics, and noise that adapts, stay as they are.
        held_out: windows held out from training. training: those that the model was trained on.

    Returns:
        r; 1 where nothing was changed.

    Source:
        The rule of one standard error: Breiman, Friedman, Olshen & Stone 1984, Classification and Regression Trees, section 3.4.3.
    """
    dynamics = model.dynamics
    if not isinstance(dynamics, PolynomialDynamics) or dynamics.adaptive is not None:
        return 1.0
    base = dynamics.base
    fields = base.exact()

    def narrowed(place: int) -> None:
        base.set_matrices(fields._replace(transition_cov=RATIOS[place] * fields.transition_cov))

    def likelihood(place: int, measured: Measured) -> Tensor:
        narrowed(place)
        return _scaled_likelihood(dynamics, measured)

    few = _measured(model, held_out)
    chosen = _widest({place: likelihood(place, few) for place in range(len(RATIOS))}, HELD_OUT_ERRORS)
    if chosen:
        every = few + _measured(model, training)
        found = {place: likelihood(place, every) for place in range(0, len(RATIOS), OCTAVE)}
        coarse = _widest(found, ALL_ERRORS)
        found |= {place: likelihood(place, every) for place in range(max(coarse - OCTAVE + 1, 0), coarse)}
        chosen = min(chosen, _widest(found, ALL_ERRORS))
    narrowed(chosen)
    return RATIOS[chosen]


def _widest(found: dict[int, Tensor], errors: float) -> int:
    """The first place in ``RATIOS`` whose likelihood is within so many standard errors of the best."""
    best = max(found.values(), key=lambda each: float(each.sum()))
    return min(place for place, each in found.items() if float((best - each).sum()) <= errors * _standard_error(best - each))


def _measured(model: LatentFilter, windows: Windows) -> Measured:
    device = model.encoder.center.device
    batches = islice(windows.batches(BATCH, shuffle=False), -(-MOST_WINDOWS // BATCH))
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
