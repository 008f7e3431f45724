"""Classical methods on the pendulum images: principal components with an affine read-out, of single images or of a Kalman filter fitted by EM."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPRegressor

from benchmarks.pendulum_tasks import Bench, unfolded
from benchmarks.records import Clock
from datasets.pendulum import Pendulum
from ldm_filter import metrics
from ldm_filter.baselines import PCAKalman, PCAKalmanSeries

__all__ = ["CLASSICAL", "classical_moments"]

CLASSICAL = ("pca-em-kf", "pca-affine")
Moments = tuple[NDArray, NDArray]  # mean (series, images, d), covariance (series, images, d, d)


def classical_moments(method: str, data: Bench, clock: Clock) -> tuple[Moments, int, dict[str, float]]:
    """(sin, cos) at every test image with covariance, the EM iterations, and further figures.

    Where the learned filter sees no targets in training, its read-out is a network: R2 with one is then given for these too, ``mlp_r2``.

    Args:
        method: one of ``CLASSICAL``. data: of the run; the first ``readout`` training sequences are used, by the read-out too.
        clock: is read after the fit.
    """
    few = Pendulum._make(part[: data.settings.readout] for part in data.train)
    model = _fitted(method, data, few)
    figures = clock.read()
    (known, known_cov), (test, test_cov) = (_moments(model, drawn, data.steps) for drawn in (few, data.test))
    fit = metrics.affine_fit(known, few.target)
    cov = metrics.decoded_covariance(fit.matrix, test_cov, fit.residual_cov, reference=known_cov)
    if not data.settings.supervised:
        figures |= {"affine_r2": float(metrics.r2(fit.apply(test), data.test.target)), "mlp_r2": _mlp_r2(known, few, test, data)}
    pca = model.model_ if isinstance(model, PCAKalmanSeries) else model
    return (fit.apply(test), cov), len(pca.log_likelihood_) - 1, figures


def _fitted(method: str, data: Bench, few: Pendulum) -> PCAKalman | PCAKalmanSeries:
    """With R following the noise of each image where it filters; with frames left out, gaps are interpolated for EM and skipped by the filter."""
    states, components = data.settings.baseline
    images = unfolded(few, data.steps)[0]
    if method == "pca-affine":
        return PCAKalman(components, components, iterations=0).fit(few.frames.astype(np.float32) / 255)
    if np.isnan(images).any():
        return PCAKalmanSeries(states, components, adaptive_noise=True).fit(images.reshape(*images.shape[:2], -1))
    return PCAKalman(states, components, adaptive_noise=True).fit(images)


def _moments(model: PCAKalman | PCAKalmanSeries, drawn: Pendulum, steps: int) -> Moments:
    """Filtered states at the images; principal components, as if they were exact, of a model that was not fitted by EM."""
    if isinstance(model, PCAKalmanSeries):
        images = unfolded(drawn, steps)[0]
        belief = model.state(images.reshape(*images.shape[:2], -1))
        series = np.arange(len(images))[:, None]
        return belief.mean.numpy()[series, drawn.stamps], belief.cov.numpy()[series, drawn.stamps]
    frames = drawn.frames.astype(np.float32) / 255
    if model.iterations:
        return model.filter(frames)
    mean = model.measure(frames).mean.numpy()
    return mean, np.zeros((*mean.shape, mean.shape[-1]))


def _mlp_r2(known: NDArray, few: Pendulum, test: NDArray, data: Bench) -> float:
    """A network in place of the affine map, from the same sequences; a tenth of its data stops the training."""
    x, y = known.reshape(-1, known.shape[-1]), few.target.reshape(-1, 2)
    centre, spread = x.mean(0), x.std(0)
    network = MLPRegressor(hidden_layer_sizes=(64, 64), learning_rate_init=3e-3, early_stopping=True, max_iter=1000, random_state=data.seed)
    network.fit((x - centre) / spread, y)
    found = network.predict((test.reshape(-1, test.shape[-1]) - centre) / spread)
    return float(metrics.r2(found, data.test.target.reshape(-1, 2)))
