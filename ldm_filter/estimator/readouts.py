"""After training: what a state means, read out of the filter's beliefs by regression."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm_filter.data.windows import Windows
from ldm_filter.estimator.context import to_device
from ldm_filter.estimator.fitting import Plan
from ldm_filter.metrics import covariance_regression, gaussian_log_likelihood, variance_scale
from ldm_filter.models.head import TargetHead
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout, fit_readout
from ldm_filter.types import Gaussian

__all__ = ["Beliefs", "beliefs", "fit_observation_readout", "rescale", "turn_covariance", "turning_pays"]

FEWEST_SERIES = 8  # by which a covariance is chosen: fewer tell no standard error
MOST_JUDGED = 20_000  # steps, about: of more every second, third ... series
STEPS_PER_NUMBER, JUDGED_ITERATIONS = 10, 100


class Beliefs(NamedTuple):
    """Predicted states p(h_t | y_<t) beside the observations that then came, of whole windows, from the second step on."""

    belief: Gaussian
    targets: Tensor
    observed: Tensor


@torch.no_grad()
def beliefs(model: LatentFilter, windows: Windows, most_steps: int = 60_000) -> Beliefs:
    """Predictions for up to ``most_steps`` steps of windows, evenly spread.

    Predictions, not filtered states: those have seen the observation's own noise, so that its residual would come out too small and the
    read-out would learn to repeat the noise. E[x_t | x_<t] is what identifies the emission x = W h + noise.
    """
    index = windows.index()
    most = max(1, (most_steps if windows.room is None else min(most_steps, windows.room)) // windows.length)
    if len(index) > most:
        index = index[torch.linspace(0, len(index) - 1, most).round().long()]
    device = model.encoder.center.device
    parts = []
    for piece in index.split(256):
        batch = windows.take(piece)
        context = to_device(batch.context, device)
        predicted = model.with_inputs(model(batch.values.to(device), batch.observed.to(device), context).predicted, context)
        rows = (predicted.mean.cpu(), predicted.cov.cpu(), batch.values.flatten(2), batch.observed.flatten(2))
        parts.append(tuple(row[:, 1:] for row in rows))  # the first prediction is the initial belief, whatever the data
    mean, covs, targets, observed = zip(*parts, strict=True)
    # In the constant regime every window has the same covariances: one copy will do.
    if all(cov.shape[0] == 1 for cov in covs):
        cov = covs[0]
    else:
        cov = torch.cat([part.expand(len(own), *part.shape[1:]) for part, own in zip(covs, mean, strict=True)])
    return Beliefs(Gaussian(torch.cat(mean), cov), torch.cat(targets), torch.cat(observed))


def fit_observation_readout(model: LatentFilter, plan: Plan, kind: str, seed: int) -> Readout:
    """The read-out from states to the data itself, in standardised units; its covariance is taken from held-out windows."""
    training = _standardised(model, beliefs(model, plan.training))
    held_out = None if plan.validation is None else _standardised(model, beliefs(model, plan.validation))
    generator = torch.Generator().manual_seed(seed)
    return fit_readout(*training, kind=kind, held_out=held_out, generator=generator).to(model.encoder.center.device)


@torch.no_grad()
def turn_covariance(readout: Readout | TargetHead, belief: Gaussian, targets: Tensor, observed: Tensor) -> None:
    """Let the covariance of a fitted read-out depend on its mean, by regression of its errors ``(B, T, D)`` where all targets are observed.

    Raises:
        ValueError: more targets than a covariance is kept for, or too few complete steps.
    """
    if not readout.full:
        raise ValueError(f"covariance is 'state-dependent', which {targets.shape[-1]} targets are too many for; leave it at 'constant'")
    mean, error, cov, complete = _errors(readout, belief, targets, observed)
    readout.turn(covariance_regression(mean, error, cov, complete))


@torch.no_grad()
def turning_pays(readout: Readout, belief: Gaussian, targets: Tensor, observed: Tensor) -> bool:
    """Whether a covariance that depends on the mean makes errors likelier in series that it was not fitted on; arguments as `turn_covariance`.

    Every second series is judged by what the others taught, and the other way round. With g the gain in mean log-likelihood per step of each of N
    series, it pays where mean(g) > std(g) / N^(1/2): by more than one standard error, as Breiman et al. 1984 choose the larger of two models. It
    does not where fewer than 8 series have steps with all targets, or half of them have fewer than 10 such steps for each number to be fitted, or
    where there are more targets than a covariance is kept for.
    """
    if not readout.full:
        return False
    mean, error, cov, complete = _errors(readout, belief, targets, observed)
    whole = np.flatnonzero(complete.any(1))
    every = min(int(complete.sum()) // MOST_JUDGED, len(whole) // FEWEST_SERIES)
    used = np.isin(np.arange(len(complete)), whole[:: max(1, every)])
    complete = complete & used[:, None]
    number = np.unique(np.nonzero(complete)[0], return_inverse=True)[1]  # of the series that each step belongs to
    mean, error, cov = mean[complete], error[complete], cov[complete]
    odd, size = number % 2 == 1, mean.shape[-1]
    numbers = size * (size + 1) // 2 + size * (1 + size) + 1
    if len(whole) < FEWEST_SERIES or min(odd.sum(), (~odd).sum()) < STEPS_PER_NUMBER * numbers:
        return False
    gain = -gaussian_log_likelihood(np.zeros_like(error), cov, error)
    for judged in (odd, ~odd):
        turned = covariance_regression(mean[~judged], error[~judged], cov[~judged], iterations=JUDGED_ITERATIONS).apply(mean[judged], cov[judged])
        gain[judged] += gaussian_log_likelihood(np.zeros_like(error[judged]), turned, error[judged])
    gains = np.bincount(number, gain) / np.bincount(number)
    return bool(gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)))


def _errors(readout: Readout | TargetHead, belief: Gaussian, targets: Tensor, observed: Tensor) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Mean, error and covariance of a read-out in float64, and at which steps ``(B, T)`` all targets are observed."""
    mean, cov = (part.double().numpy() for part in readout(belief))
    error = torch.where(observed, targets, 0.0).double().numpy() - mean
    return mean, error, np.broadcast_to(cov, (*mean.shape, mean.shape[-1])), observed.all(-1).numpy()


@torch.no_grad()
def rescale(readout: Readout | TargetHead, belief: Gaussian, targets: Tensor, observed: Tensor) -> float:
    """Scale all covariances of a read-out by the one factor that makes NEES / d 1 on held-out data (see `metrics.variance_scale`); returns it."""
    mean, variance = readout.moments(belief)
    cov = readout(belief).cov if readout.full else torch.diag_embed(variance)
    estimate, spread, truth = (part.double().cpu().numpy() for part in (mean, cov.expand(*mean.shape, mean.shape[-1]), targets))
    factor = variance_scale(estimate, spread, truth, observed.cpu().numpy())
    if isinstance(readout, Readout) and not readout.full:
        readout.trust.mul_(factor)
        readout.residual.mul_(factor)
    else:
        readout.scale_covariance(factor)
    return factor


def _standardised(model: LatentFilter, found: Beliefs) -> Beliefs:
    center, scale = model.encoder.center.flatten().cpu(), model.encoder.scale.flatten().cpu()
    return found._replace(targets=torch.where(found.observed, (found.targets - center) / scale, torch.zeros_like(found.targets)))
