"""How an estimate of latents is judged: affine read-outs both ways, what is left of them, dynamics, and the encoder's injectivity."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neural_network import MLPRegressor

from benchmarks.calibration import consistency
from benchmarks.latent_tasks import Bench
from ldm_filter import metrics

__all__ = ["Encoding", "evaluate", "truth_figures"]

NEIGHBOURS, TANGENTS = 4000, 500  # samples of the neighbour ratio, and of the Jacobian


class Encoding(NamedTuple):
    """What a method says about observations.

    Attributes:
        mean: ``(series, steps, n)``, latents or filtered states.
        nis: NIS / m, ``(series, steps)``, None for what predicts nothing.
        transition, offset: of linear dynamics of ``mean``, ``(n, n)`` and ``(n,)``.
        latent: ``(series, steps, m)``, the encoder's output, where there is an encoder; embed: the same of single observations ``(N, values)``.
    """

    mean: NDArray
    nis: NDArray | None = None
    transition: NDArray | None = None
    offset: NDArray | None = None
    latent: NDArray | None = None
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None


def truth_figures(estimate: NDArray, data: Bench) -> dict[str, float]:
    """R2 and squared error of an estimate of the truth itself: the oracle's, or a supervised method's."""
    return {"affine_r2": float(metrics.r2(estimate, data.test.truth)), "mse": metrics.mse(estimate, data.test.truth)}


def evaluate(readout: Encoding, test: Encoding, data: Bench) -> dict[str, float]:
    """All figures of a method; maps are fitted on the read-out's series."""
    known, truth = (np.asarray(part.truth, dtype=float) for part in (data.readout, data.test))
    forth, back = metrics.affine_fit(readout.mean, known), metrics.affine_fit(known, readout.mean)
    aligned = forth.apply(test.mean)
    figures = truth_figures(aligned, data)
    figures["affine_r2_back"] = float(metrics.r2(back.apply(truth), test.mean))
    figures |= {"mcc": metrics.mcc(aligned, truth), "procrustes": metrics.procrustes_disparity(test.mean, truth)}
    if data.test.in_range is not None and not data.test.in_range.all():
        figures["affine_r2_in_range"] = _in_range(readout, test, data)
    if data.settings.mlp:
        figures["mlp_r2"] = _mlp_r2(readout.mean, test.mean, data)
    return figures | consistency(test.nis) | _dynamics(test, forth, back, data) | _injectivity(test, data)


def _in_range(readout: Encoding, test: Encoding, data: Bench) -> float:
    """R2 where the truth can be seen, the map fitted there too."""
    sides = [(side.mean[part.in_range], part.truth[part.in_range]) for side, part in ((readout, data.readout), (test, data.test))]
    return float(metrics.affine_r2(*sides[0], *sides[1]))


def _mlp_r2(readout: NDArray, test: NDArray, data: Bench) -> float:
    """R2 with a small network in place of the affine map; a tenth of its data stops the training."""
    x, y = (part.reshape(-1, part.shape[-1]).astype(float) for part in (readout, data.readout.truth))
    centre, spread = x.mean(0), x.std(0)
    network = MLPRegressor(hidden_layer_sizes=(64, 64), learning_rate_init=3e-3, early_stopping=True, max_iter=200, random_state=data.seed)
    network.fit((x - centre) / spread, y.squeeze(-1) if y.shape[1] == 1 else y)
    mean = network.predict((test.reshape(-1, test.shape[-1]) - centre) / spread)
    return float(metrics.r2(mean.reshape(data.test.truth.shape), data.test.truth))


def _dynamics(test: Encoding, forth: metrics.AffineMap, back: metrics.AffineMap, data: Bench) -> dict[str, float]:
    """Learned linear dynamics against the true ones."""
    if test.transition is None or test.offset is None:
        return {}
    transition, offset, figures = test.transition, test.offset, {}
    if data.system.transition is not None:
        figures["eig_error"] = metrics.eigenvalue_error(transition, data.system.transition)
    if data.system.step is not None:
        truth = data.test.truth
        figures["dyn_r2"] = metrics.dynamics_r2(lambda z: z @ transition.T + offset, truth, data.system.step(truth), forth, back)
    return figures


def _injectivity(test: Encoding, data: Bench) -> dict[str, float]:
    """``injectivity``: smallest / largest singular value of the encoder's Jacobian along the data's manifold, its 5 % quantile over places
    (0: a direction is lost); ``neighbours``: how much further away, in truth, the nearest latents are than the nearest truths, median."""
    if test.embed is None or test.latent is None or data.system.directions is None:
        return {}
    truth = data.test.truth.reshape(-1, data.test.truth.shape[-1])
    latent = test.latent.reshape(len(truth), -1)
    chosen = np.linspace(0, len(truth) - 1, min(NEIGHBOURS, len(truth))).round().astype(int)
    figures = {"neighbours": metrics.neighbour_ratio(latent[chosen], truth[chosen], quantile=0.5)}
    few = chosen[:: max(1, len(chosen) // TANGENTS)]
    points = torch.as_tensor(data.test.observations.reshape(len(truth), -1)[few])
    directions = torch.as_tensor(data.system.directions(truth[few]), dtype=points.dtype)
    found = metrics.local_injectivity(test.embed, points, directions)
    figures["injectivity"] = float(np.quantile(1.0 / found.condition, 0.05))
    return figures
