"""What is compared on the identifiability tasks: the learned filter and pair models, classical and supervised baselines, the oracle."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from torch import nn

from benchmarks.latent_encoder import whitened
from benchmarks.latent_judge import Encoding, evaluate, truth_figures
from benchmarks.latent_tasks import SETTINGS, VARIANTS, Bench, Settings, bench
from benchmarks.records import Clock, Outcome, checkpoint
from ldm_filter import LDMFilter
from ldm_filter.baselines import PCAKalman

__all__ = ["BASELINES", "SUPERVISED", "default_methods", "run"]

BASELINES = ("pca-affine", "pca-em-kf")
SUPERVISED = ("ridge-supervised", "mlp-supervised")


class Fitted(NamedTuple):
    """A trained method: observations -> what is judged; how many updates made it; the read-out that belongs to it."""

    encode: Callable[[NDArray], Encoding]
    train_steps: int


def default_methods(task: str, condition: str = "") -> tuple[str, ...]:
    """The learned models of a task, the untrained encoder, and everything they must stand beside; of another model of it, the learned ones."""
    settings = VARIANTS.get((task, condition), SETTINGS[task])
    if (task, condition) in VARIANTS:
        return tuple(f"ldm-{objective}" for objective in settings.objectives)
    wide = (f"ldm-{settings.objectives[0]}+wide", "untrained+wide", "pca-em-kf+wide") if settings.wide and not condition else ()
    ours = (*(f"ldm-{objective}" for objective in settings.objectives), "untrained")
    kalman = (*(BASELINES if settings.steps > 2 else BASELINES[:1]), *wide)
    oracle = ("oracle",) if settings.particles or settings.steps == 2 else ()
    return (*ours, *kalman, *(SUPERVISED if settings.supervised else ()), *oracle)


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit a method on training observations, read the truth out, and judge it on test observations.

    Args:
        task: a key of ``SETTINGS``. condition: one of its ``CONDITIONS``.
        method: ``oracle``, ``untrained``, one of ``BASELINES`` or ``SUPERVISED``, or ``ldm-<objective>`` with an objective of LDMFilter; after
            that ``+wide``: of the sizes ``settings.wide``.
        budget: ``smoke | cpu | full``.
        seed: of the system, the data and the method.

    Raises:
        ValueError: an unknown task, condition, method or budget.
    """
    data = bench(task, condition, budget, seed)
    started = time.perf_counter()
    if method == "oracle":
        if data.system.oracle is None:
            raise ValueError(f"method is 'oracle', and {task} has none")
        figures = truth_figures(data.system.oracle(data.test.observations, data.settings.particles), data)
        return Outcome(figures, "none", time.perf_counter() - started, 0)
    if method in SUPERVISED:
        figures = truth_figures(_supervised(method, data), data)
        return Outcome(figures, "supervised", time.perf_counter() - started, 0)
    clock = Clock()
    fitted = _fit(method, data)
    spent = clock.read()
    figures = evaluate(fitted.encode(data.readout.observations), fitted.encode(data.test.observations), data) | spent
    return Outcome(figures, "affine", time.perf_counter() - started, fitted.train_steps)


def _fit(method: str, data: Bench) -> Fitted:
    method, _, variant = method.partition("+")
    settings = _widened(data.settings, variant, data.task) if variant else data.settings
    if method == "untrained" or method.startswith("ldm-"):
        return _fit_ldm(method, settings, data)
    if method == "pca-affine":
        return _fit_pca(data)
    if method == "pca-em-kf":
        return _fit_pca_kalman(settings, data)
    raise ValueError(f"method is {method!r}, expected oracle, untrained, {', '.join((*BASELINES, *SUPERVISED))} or ldm-<objective>")


def _widened(settings: Settings, variant: str, task: str) -> Settings:
    """Those of ``<method>+wide``."""
    if variant != "wide" or settings.wide is None:
        raise ValueError(f"variant is {variant!r} of {task}, expected 'wide', of a task whose settings have it, or no plus")
    states, latents = settings.wide
    baseline = settings.wide_baseline or settings.baseline
    return replace(settings, state_dim=states, latent_dim=latents, epochs=settings.wide_epochs, baseline=baseline)


def _fit_ldm(method: str, settings: Settings, data: Bench) -> Fitted:
    trained = method != "untrained"
    model = LDMFilter(
        settings.state_dim,
        settings.latent_dim,
        encoder=_encoder(settings, data),
        dynamics=settings.dynamics,
        objective=method.removeprefix("ldm-") if trained else settings.objectives[0],
        latent_model=settings.latent_model,
        mutual_information=settings.mutual_information,
        readout="linear",  # to the observations, which nothing here judges
        window=settings.window,
        learning_rate=settings.learning_rate if trained else 1e-12,
        dynamics_rate=settings.dynamics_rate,
        seed=data.seed,
        device=settings.device,
    )
    epochs = settings.epochs if trained else 1
    if method in ("ldm-knn", "ldm-kde"):
        epochs = settings.quadratic_epochs or epochs
    elif method in ("ldm-annealed-knn", "ldm-annealed-kde"):
        epochs = settings.annealed_epochs or epochs
    model.fit(data.train, epochs=epochs, batch_size=settings.batch_size, validation=0.1, progress=False, checkpoint=checkpoint())
    ssm = model.model_.dynamics() if settings.judged == "filtered" and settings.dynamics == "linear" else None
    transition = None if ssm is None else ssm.transition_matrix.detach().double().numpy(force=True)
    offset = None if ssm is None else ssm.transition_offset.detach().double().numpy(force=True)

    def encode(observations: NDArray) -> Encoding:
        result = model.filter(observations)
        mean = result.filtered_mean if settings.judged == "filtered" else result.latent_mean
        nis = result.nis.values if settings.judged == "filtered" else None
        return Encoding(mean.values, nis, transition, offset, result.latent_mean.values, _embedding(model))

    kept = len(data.train) - round(0.1 * len(data.train))
    windows = kept * max(1, settings.steps // (settings.window or settings.steps))
    return Fitted(encode, len(model.history_.epochs) * -(-windows // settings.batch_size) if trained else 0)


def _encoder(settings: Settings, data: Bench) -> str | nn.Module:
    return whitened(data.train, settings, settings.latent_dim, data.seed) if settings.components else "auto"


def _embedding(model: LDMFilter) -> Callable[[torch.Tensor], torch.Tensor]:
    """Single observations ``(N, values)`` -> latents, for the Jacobian."""
    encoder = model.model_.encoder

    def embed(rows: torch.Tensor) -> torch.Tensor:
        values = rows.unflatten(1, encoder.event_shape).unsqueeze(0)
        return encoder.embed((values - encoder.center) / encoder.scale, None)[0]

    return embed


def _fit_pca_kalman(settings: Settings, data: Bench) -> Fitted:
    model = PCAKalman(*settings.baseline).fit(data.train)
    ssm = model.model_.ssm

    def encode(observations: NDArray) -> Encoding:
        return Encoding(model.filter(observations)[0], None, ssm.transition_matrix.numpy(), ssm.transition_offset.numpy())

    return Fitted(encode, len(model.log_likelihood_) - 1)


def _fit_pca(data: Bench) -> Fitted:
    """Principal components of each observation on its own."""
    components = data.settings.baseline[1]
    flat = data.train.reshape(-1, data.train[0, 0].size).astype(float)
    mean = flat.mean(0)
    vectors = np.linalg.eigh(np.cov(flat.T))[1][:, -components:]
    return Fitted(lambda observations: Encoding((observations.reshape(*observations.shape[:2], -1) - mean) @ vectors), 0)


def _supervised(method: str, data: Bench) -> NDArray:
    """The truth of the test series from single observations, by what learns from the truth of the read-out's series."""
    x, y = (part.reshape(-1, part[0, 0].size).astype(float) for part in (data.readout.observations, data.readout.truth))
    if method == "ridge-supervised":
        model = Ridge(alpha=1.0)
    else:
        model = MLPRegressor(hidden_layer_sizes=(64, 64), early_stopping=True, max_iter=100, random_state=data.seed)
    test = data.test.observations
    predicted = model.fit(x, y.squeeze(-1) if y.shape[1] == 1 else y).predict(test.reshape(-1, x.shape[1]))
    return predicted.reshape(data.test.truth.shape)
