"""What is compared on the Lorenz tasks, and what each method knows.

| method | knows |
|---|---|
| `ldm-polynomial`, `ldm-ekf` | noisy observations, and that they are the state plus noise; no state, no equation, no noise level |
| `polynomial-supervised` | the true states of the training series beside the observations |
| `pca-em-kf` | as the first: a linear filter by EM |
| `ekf-true`, `ukf-true` | the transition, the noise levels and (`lorenz`) the start |
| `observation` | the observation, taken for the state |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.lorenz_tasks import Bench, Estimate, bench, evaluate, true_transition
from benchmarks.records import Clock, Outcome
from ldm_filter import LDMFilter, metrics
from ldm_filter.baselines import PCAKalman
from ldm_filter.core.kalman import filter_moments, filter_sequence
from ldm_filter.core.linearisation import extended, sigma_point, unscented
from ldm_filter.core.nonlinear import NonlinearStateSpace, linearised
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["BASELINES", "default_methods", "run"]

BASELINES = ("pca-em-kf", "observation", "ekf-true", "ukf-true")
SHARES = (1e-3, 1e-2, 1e-1)
EYE = torch.eye(3, dtype=torch.float64)


def default_methods(task: str, condition: str = "") -> tuple[str, ...]:
    """The filter learned from observations alone, the one that is shown states, and the baselines."""
    return ("ldm-polynomial", "polynomial-supervised", *BASELINES)


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit a method on training series and judge its estimate of the state on test series.

    Args:
        task: a key of ``SETTINGS``. condition: one of its ``CONDITIONS``.
        method: one of ``BASELINES``, ``polynomial-supervised``, or ``ldm-<dynamics>`` with dynamics of LDMFilter.
        budget: ``smoke | cpu | full``.
        seed: of the data and of the method.

    Raises:
        ValueError: an unknown task, condition, method or budget.
    """
    data = bench(task, condition, budget, seed)
    started, clock = time.perf_counter(), Clock()
    estimator, train_steps, readout = _fit(method, data)
    fitted = clock.read()
    figures = evaluate(estimator(data.test.observations), estimator(data.validation.observations), data) | fitted
    return Outcome(figures, readout, time.perf_counter() - started, train_steps)


def _fit(method: str, data: Bench) -> tuple[Callable[[NDArray], Estimate], int, str]:
    if method.startswith("ldm-"):
        return (*_fit_ldm(method.removeprefix("ldm-"), data), "none")
    if method == "polynomial-supervised":
        return _fit_supervised(data), 1, "supervised"
    if method == "pca-em-kf":
        return (*_fit_linear(data), "none")
    if method == "observation":
        return lambda seen: Estimate(seen.astype(float), np.broadcast_to(data.noise_var * np.eye(3), (*seen.shape, 3))), 0, "none"
    if method in BASELINES:
        return _known(method, data), 0, "none"
    raise ValueError(f"method is {method!r}, expected polynomial-supervised, {', '.join(BASELINES)} or ldm-<dynamics>")


def _fit_ldm(dynamics: str, data: Bench) -> tuple[Callable[[NDArray], Estimate], int]:
    """A linear encoder of as many latents as there are channels, and its exact change of volume: the likelihood of the observations themselves.

    What a latent without noise, C h + c, comes from is then the state's own observation without noise, which is the state.
    """
    chosen = data.settings
    model = LDMFilter(
        3,
        encoder="linear",
        dynamics=dynamics,
        objective="jacobian",
        readout="linear",
        window=chosen.window,
        learning_rate=chosen.learning_rate,
        dynamics_rate=chosen.dynamics_rate,
        patience=None,
        seed=data.seed,
        device=chosen.device,
    )
    model.fit(data.train.observations, epochs=chosen.epochs, batch_size=chosen.batch_size, progress=False)
    matrix, offset = _from_latents(model)
    fields = model.model_.dynamics.base.state_space()  # type: ignore[union-attr,operator]
    C, c = (part.detach().double().numpy(force=True) for part in (fields.observation_matrix, fields.observation_offset))
    back, level = matrix @ C, matrix @ c + offset

    def estimate(seen: NDArray) -> Estimate:
        result = model.smooth(seen)
        parts = [(getattr(result, f"{kind}_mean").values, getattr(result, f"{kind}_cov").values) for kind in ("filtered", "smoothed")]
        (mean, cov), after = [(mean @ back.T + level, back @ cov @ back.T) for mean, cov in parts]
        return Estimate(mean, cov, result.nis.values, after)

    kept = len(data.train.observations) - round(0.1 * len(data.train.observations))
    windows = kept * -(-chosen.steps // chosen.window)
    return estimate, len(model.history_.epochs) * -(-windows // chosen.batch_size)


def _from_latents(model: LDMFilter) -> tuple[NDArray, NDArray]:
    """The inverse of a linear encoder: observation = matrix z + offset."""
    at = model.encode(np.concatenate([np.zeros((1, 3)), np.eye(3)])).latent_mean.values.astype(float)
    matrix = np.linalg.inv((at[1:] - at[0]).T)
    return matrix, -matrix @ at[0]


def _fit_supervised(data: Bench) -> Callable[[NDArray], Estimate]:
    """A polynomial from each true state to the next by least squares, and the sample covariances of what it and the observation leave over."""
    states, seen = data.train.states.astype(float), data.train.observations.astype(float)
    centre, spread = states.mean((0, 1)), states.std((0, 1))
    terms = [term for degree in range(data.settings.degree + 1) for term in combinations_with_replacement(range(3), degree)]

    def features(x: Tensor) -> Tensor:
        u = ((x - torch.as_tensor(centre)) / torch.as_tensor(spread)).clamp(-4.0, 4.0)  # no polynomial is to be trusted beyond its data
        return torch.stack([u[..., list(term)].prod(-1) for term in terms], dim=-1)

    before, after = (torch.as_tensor(part.reshape(-1, 3)) for part in (states[:, :-1], states[:, 1:]))
    weight = torch.linalg.lstsq(features(before), after, driver="gelsd").solution
    rest = after - features(before) @ weight
    noise = torch.as_tensor(np.cov((seen - states).reshape(-1, 3).T))
    first = Gaussian(torch.as_tensor(centre), torch.as_tensor(np.diag(spread**2)))
    shown = Gaussian(torch.as_tensor(seen[::10]), noise[None, None])

    def model(share: float) -> NonlinearStateSpace:
        process = rest.mT @ rest / len(rest) + share * noise

        def move(state: Tensor, step: int | slice) -> Gaussian:
            return Gaussian(features(state) @ weight, process)

        return NonlinearStateSpace(move, extended(move), EYE, torch.zeros(3).double(), first)

    # A transition without noise is not exact in the tangents' view of it: what is added to Q is chosen by likelihood.
    best = max(SHARES, key=lambda share: float(filter_moments(model(share), shown)[1].mean()))
    return _filter_with(model(best), noise)


def _known(method: str, data: Bench) -> Callable[[NDArray], Estimate]:
    """The filter of the true model; the decimated flow, which has no noise, gets a sliver, without which an extended filter is lost after a while."""
    held = data.task == "lorenz"
    move = true_transition(data.process_var if held else 1e-4 * data.noise_var, held)
    first = Gaussian(torch.ones(3).double(), 1e-9 * EYE) if held else Gaussian(torch.tensor([0.0, 0.0, 25.0]).double(), 80.0 * EYE)
    linearise = extended(move) if method == "ekf-true" else sigma_point(move, unscented(3, 1.0, 0.0, 0.0))
    return _filter_with(NonlinearStateSpace(move, linearise, EYE, torch.zeros(3).double(), first), data.noise_var * EYE)


def _filter_with(model: NonlinearStateSpace, noise: Tensor) -> Callable[[NDArray], Estimate]:

    def estimate(seen: NDArray) -> Estimate:
        measured = Gaussian(torch.as_tensor(seen).double(), noise[None, None])
        result = filter_sequence(model, measured)
        after = smooth_sequence(linearised(model, result), result).smoothed
        nis = metrics.nis(result.projected.mean, result.projected.cov, measured.mean, normalised=True)
        return Estimate(result.filtered.mean.numpy(), result.filtered.cov.numpy(), nis, (after.mean.numpy(), after.cov.numpy()))

    return estimate


def _fit_linear(data: Bench) -> tuple[Callable[[NDArray], Estimate], int]:
    """A linear filter with more states than channels, by EM; the state's estimate is C h + c, turned back to the data's units."""
    model = PCAKalman(data.settings.baseline, 3).fit(data.train.observations)
    at = model.measure(np.concatenate([np.zeros((1, 3)), np.eye(3)])[None].astype(np.float32)).mean[0].double().numpy()
    matrix = np.linalg.inv((at[1:] - at[0]).T)
    ssm: StateSpace = model.model_.ssm
    back = matrix @ ssm.observation_matrix.double().numpy()
    level = matrix @ (ssm.observation_offset.double().numpy() - at[0])

    def estimate(seen: NDArray) -> Estimate:
        measured = model.measure(seen)
        result = filter_sequence(ssm, measured)
        after = smooth_sequence(ssm, result).smoothed
        nis = metrics.nis(result.projected.mean, result.projected.cov.expand(*measured.mean.shape, 3), measured.mean, normalised=True)
        size = len(back.T)
        beliefs = [(p.mean.double().numpy(), p.cov.expand(*p.mean.shape, size).double().numpy()) for p in (result.filtered, after)]
        (mean, cov), smoothed = [(m @ back.T + level, back @ p @ back.T) for m, p in beliefs]
        return Estimate(mean, cov, nis, smoothed)

    return estimate, len(model.log_likelihood_) - 1
