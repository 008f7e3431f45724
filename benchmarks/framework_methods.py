"""The framework's choices side by side: every entropy estimator and named method on three systems, with what collapsed.

All else is the task's own (`benchmarks.dot_tasks`, `benchmarks.latent_tasks`), nothing is tuned for one of them. What neighbouring frames teach is
trained on pairs from many sequences, what a filter or a recurrent network teaches on whole sequences. The filter of models other than the filter
itself is fitted to the latents that were found.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from benchmarks import dot_tasks, latent_tasks
from benchmarks.latent_encoder import whitened
from benchmarks.records import Clock, Outcome
from ldm_filter import CollapseError, LDMFilter, metrics

__all__ = ["CONDITION", "CONDITIONS", "METHODS", "Method", "default_methods", "run"]

CONDITION = "framework"
CONDITIONS: dict[str, tuple[str, ...]] = dict.fromkeys(("figure8", "circular-input-noise", "wobbly"), (CONDITION,))
PAIR_BATCH, PAIR_EPOCHS = 2048, {"figure8": 40, "circular-input-noise": 40, "wobbly": 40}
BLIND_R2 = 0.1  # latents that tell less of the truth than this have collapsed, whether training noticed or not


class Method(NamedTuple):
    """Arguments of LDMFilter, and what the table says of them."""

    model: str
    entropy: str
    arguments: Mapping[str, Any]

    @property
    def pairs(self) -> bool:
        """Whether it is trained on neighbouring frames."""
        return self.model.startswith("pair")

    @property
    def sphere(self) -> bool:
        return "sphere" in self.model


def _estimators() -> dict[str, Method]:
    names = ("log-det", "conditional-log-det", "scale-mixture", "knn", "kde", "annealed-knn", "annealed-kde", "stop-gradient")
    found = {name: Method("Kalman filter", name, {"objective": name}) for name in names}
    for model, entropies in (("recurrent", ("log-det", "knn")), ("pair-predictor", ("log-det", "knn")), ("pair-regression", ("log-det",))):
        found |= {f"{model}+{name}": Method(model, name, {"objective": name, "latent_model": model}) for name in entropies}
    return found


METHODS: dict[str, Method] = _estimators() | {
    "vicreg": Method("pair", "log-det of each view", {"objective": "vicreg"}),
    "vicreg-hinge": Method("pair", "variance-covariance", {"objective": "vicreg-hinge"}),
    "simclr": Method("pair, sphere", "kde", {"objective": "simclr"}),
    "cpc": Method("recurrent, sphere", "info-nce", {"objective": "cpc"}),
    "byol": Method("pair-predictor, sphere", "stop-gradient", {"objective": "byol"}),
    "simsiam": Method("pair-predictor, sphere", "stop-gradient", {"objective": "simsiam"}),
    "jepa": Method("pair-predictor", "stop-gradient", {"objective": "jepa"}),
}


class Data(NamedTuple):
    """One task's observations and truths, and its settings."""

    settings: Any
    train: NDArray
    readout: tuple[NDArray, NDArray]
    test: tuple[NDArray, NDArray]


def default_methods(task: str, condition: str) -> tuple[str, ...]:
    """All that make sense: an entropy that is conditional on R only where R varies."""
    return tuple(name for name in METHODS if name != "conditional-log-det" or task == "circular-input-noise")


def run(task: str, condition: str, method: str, budget: str, seed: int) -> Outcome:
    """Fit a method; R2 of the truth from the encoder's output (``latent_r2``) and from the filtered state (``r2``), NIS, whether it collapsed.

    Raises:
        ValueError: an unknown task, condition, method or budget.
    """
    if condition not in CONDITIONS.get(task, ()) or method not in METHODS:
        raise ValueError(f"{task!r}, {condition!r}, {method!r} is no run; expected condition {CONDITION!r} and one of {', '.join(METHODS)}")
    data = _data(task, budget, seed)
    started, clock = time.perf_counter(), Clock()
    try:
        model = _fit(METHODS[method], task, data, budget, seed)
    except CollapseError:
        return Outcome({"collapsed": 1.0} | clock.read(), "affine", time.perf_counter() - started, 0)
    figures = _judge(model, data) | clock.read()
    return Outcome(figures, "affine", time.perf_counter() - started, len(model.history_.epochs))


def _data(task: str, budget: str, seed: int) -> Data:
    if task in dot_tasks.SETTINGS:
        dots = dot_tasks.bench(task, budget, seed)
        return Data(dots.settings, dots.train, *((part.frames, part.position) for part in (dots.readout, dots.test)))
    latent = latent_tasks.bench(task, "", budget, seed)
    return Data(latent.settings, latent.train, *((part.observations, part.truth) for part in (latent.readout, latent.test)))


def _fit(method: Method, task: str, data: Data, budget: str, seed: int) -> LDMFilter:
    settings, wobbly = data.settings, task == "wobbly"
    latent_dim = settings.latent_dim + (1 if method.sphere and wobbly else 0)  # m latents of unit length hold m - 1 dimensions
    arguments: dict[str, Any] = {
        **{"encoder": whitened(data.train, settings, latent_dim, seed) if wobbly else settings.encoder, "readout": "linear"},
        **{"learning_rate": settings.learning_rate, "dynamics_rate": settings.dynamics_rate, "device": settings.device, "seed": seed},
        **{"noise": "input" if task == "circular-input-noise" and method.model == "Kalman filter" else "constant"},
        **({"window": 2} if method.pairs else {}),
        **method.arguments,
    }
    epochs = settings.epochs if budget == "smoke" else PAIR_EPOCHS[task] if method.pairs else 10 if wobbly else settings.epochs
    if method.pairs and method.entropy in ("knn", "kde"):  # all pairs of a batch are compared
        epochs = max(1, epochs // 4)
    batch_size = PAIR_BATCH if method.pairs else 32
    return LDMFilter(settings.state_dim, latent_dim, **arguments).fit(
        data.train, epochs=epochs, batch_size=batch_size, validation=0.1, progress=False
    )


def _judge(model: LDMFilter, data: Data) -> dict[str, float]:
    results = [model.filter(observations) for observations, _ in (data.readout, data.test)]
    figures = {}
    for name, field in (("latent_r2", "latent_mean"), ("r2", "filtered_mean")):
        fitted, judged = (getattr(result, field).values for result in results)
        figures[name] = float(metrics.r2(metrics.affine_fit(fitted, data.readout[1]).apply(judged), data.test[1]))
    collapsed = float(figures["latent_r2"] < BLIND_R2)
    return figures | {"nis": float(results[1].nis.mean()), "collapsed": collapsed}
