"""How an estimate on the dot videos is judged: accuracy beside the exact filter's, calibration of three covariances, noise levels, jumps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPRegressor

from benchmarks.calibration import affine_readout, consistency
from benchmarks.dot_tasks import Bench
from ldm_filter import metrics

__all__ = ["Estimate", "evaluate", "evaluate_oracle"]


class Estimate(NamedTuple):
    """What a filter says about frames.

    Attributes:
        mean: ``(series, steps, n)`` of the state. cov: ``(series, steps, n, n)``.
        nis: NIS / m, ``(series, steps)``, None for what predicts nothing.
        noise_cov: R, ``(series, steps, m, m)``, None where it does not vary.
        predicted_cov: ``(series, steps, n, n)`` before each frame, None where it does not vary.
    """

    mean: NDArray
    cov: NDArray
    nis: NDArray | None = None
    noise_cov: NDArray | None = None
    predicted_cov: NDArray | None = None


def evaluate(readout: Estimate, test: Estimate, data: Bench) -> dict[str, float]:
    """All figures of a filter: affine read-out of the position with covariance, fitted on read-out sequences, judged on test sequences.

    Those that end in ``_scaled`` are with the covariance times one factor, measured on held-out read-out sequences. Those in ``_turned`` are of
    the covariance that depends on the position (`ldm_filter.metrics.covariance_regression`).
    """
    decoded = affine_readout(readout[:2], data.readout.position, test[:2])
    figures = _accuracy(decoded.mean, data) | decoded.figures(data.test.position) | consistency(test.nis)
    figures |= _noise_levels(decoded.mean, decoded.turned, data) | _jumps(test.predicted_cov, data)
    if data.settings.mlp:
        figures |= _mlp(readout.mean, test.mean, data)
    if test.noise_cov is not None:
        figures["noise_corr"] = metrics.noise_corr(test.noise_cov, data.test.noise_var)
    return figures


def evaluate_oracle(data: Bench) -> dict[str, float]:
    """Accuracy of the exact filter, and what jumps do to its covariance. Its belief lies on a curve, which the ellipse of a Gaussian does not
    describe: no calibration is given."""
    return _accuracy(data.oracle.mean, data) | _jumps(data.oracle.predicted_cov, data)


def _accuracy(mean: NDArray, data: Bench) -> dict[str, float]:
    truth = data.test.position
    r2_x, r2_y = np.asarray(metrics.r2(mean, truth, per_dim=True))
    error = metrics.mse(mean, truth)
    excess = error / metrics.mse(data.oracle.mean, truth) - 1
    return {"r2": float(metrics.r2(mean, truth)), "r2_x": float(r2_x), "r2_y": float(r2_y), "mse": error, "excess": excess}


def _noise_levels(mean: NDArray, cov: NDArray, data: Bench) -> dict[str, float]:
    """Coverage of the 95 % ellipse apart for the clean and the noisy third of the frames, where frames differ in noise."""
    level = data.test.noise_var
    low, high = np.quantile(level, (1 / 3, 2 / 3))
    if low == high:
        return {}
    inside = metrics.nees(mean, cov, data.test.position) <= chi2.ppf(0.95, 2)
    return {"coverage95_clean": float(inside[level <= low].mean()), "coverage95_noisy": float(inside[level >= high].mean())}


def _jumps(predicted_cov: NDArray | None, data: Bench) -> dict[str, float]:
    """``auc``: how well log det of the predicted covariance tells the step after a jump from all others (0.5: not at all, 1: always).

    ``settled``: the median number of steps after a jump until it is as low as at 95 % of the steps with no jump in the 20 before them.
    """
    jumped = data.test.jumped
    if predicted_cov is None or not jumped.any():
        return {}
    size = np.linalg.slogdet(predicted_cov)[1]
    auc = float(roc_auc_score(jumped[:, :-1].ravel(), size[:, 1:].ravel()))
    recent = np.stack([np.pad(jumped, ((0, 0), (lag, 0)))[:, : jumped.shape[1]] for lag in range(21)]).any(0)
    recent = recent | (np.arange(jumped.shape[1]) < 20)  # at first the filter is still finding in
    calm = np.quantile(size[~recent], 0.95)
    after = [size[series, step + 1 :] <= calm for series, step in zip(*np.nonzero(jumped), strict=True)]
    waits = [np.argmax(low) for low in after if low.any()]
    return {"auc": auc, "settled": float(np.median(waits))}


def _mlp(readout: NDArray, test: NDArray, data: Bench) -> dict[str, float]:
    """R2 with a small network in place of the affine map, from the same sequences; a tenth of its data stops the training."""
    x, y = (part.reshape(-1, part.shape[-1]).astype(float) for part in (readout, data.readout.position))
    centre, spread = x.mean(0), x.std(0)
    network = MLPRegressor(hidden_layer_sizes=(64, 64), learning_rate_init=3e-3, early_stopping=True, max_iter=1000, random_state=data.seed)
    network.fit((x - centre) / spread, y)
    mean = network.predict((test.reshape(-1, test.shape[-1]) - centre) / spread).reshape(data.test.position.shape)
    excess = metrics.mse(mean, data.test.position) / metrics.mse(data.oracle.mean, data.test.position) - 1
    return {"mlp_r2": float(metrics.r2(mean, data.test.position)), "mlp_excess": excess}
