"""How every judge says whether a Gaussian estimate is honest: scores of three covariances, with bounds over sequences.

A figure ``nees`` of the covariance as it comes is called ``nees_turned`` and ``nees_scaled`` with the other two; the ends of its 95 % confidence
interval, where it has one, are ``nees_low``, ``nees_high``, ``nees_turned_low`` and so on. Whole sequences are resampled, for neighbouring steps err
alike (`ldm_filter.metrics.bounded_mean`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldm_filter import metrics

__all__ = ["BOUNDED", "KEPT", "Decoded", "affine_readout", "calibration", "consistency", "variant"]

BOUNDED = ("nees", "coverage95")
KEPT = ("nll", "nees", "coverage50", "coverage80", "coverage95", "pit_distance")


def calibration(mean: NDArray, cov: NDArray, truth: NDArray, mask: NDArray | None = None) -> dict[str, float]:
    """`ldm_filter.metrics.scores` of ``(series, steps, d)``, and the ends of the intervals of ``BOUNDED``."""
    mean, cov, truth = (np.asarray(part, dtype=float) for part in (mean, cov, truth))
    return metrics.scores(mean, cov, truth, mask) | _ends(metrics.bounded_scores(mean, cov, truth, mask), BOUNDED)


def variant(figures: dict[str, float], name: str, kept: Iterable[str] = KEPT) -> dict[str, float]:
    """Those of `calibration` that depend on the covariance, under the names that they have with another one, ``"turned"`` or ``"scaled"``."""
    ends = [f"{figure}_{end}" for figure in BOUNDED for end in ("low", "high")]
    return {f"{figure}_{name}": figures[figure] for figure in kept} | {
        f"{end.rpartition('_')[0]}_{name}_{end.rpartition('_')[2]}": figures[end] for end in ends
    }


def consistency(nis: NDArray | None) -> dict[str, float]:
    """``nis``, the mean of NIS / m ``(series, steps)``, with its ends; NaN where nothing was observed, nothing of what predicts nothing."""
    if nis is None:
        return {}
    found = metrics.bounded_mean(np.asarray(nis, dtype=float))
    return {"nis": found.mean} | _ends({"nis": found}, ("nis",))


def _ends(bounds: dict[str, metrics.Bounded], names: Iterable[str]) -> dict[str, float]:
    return {f"{name}_{end}": getattr(bounds[name], end) for name in names for end in ("low", "high")}


class Decoded(NamedTuple):
    """An estimate of the truth ``(series, steps, d)`` with three covariances ``(series, steps, d, d)``."""

    mean: NDArray
    cov: NDArray
    turned: NDArray
    scaled: NDArray

    def figures(self, truth: NDArray) -> dict[str, float]:
        """`calibration` of each."""
        figures = calibration(self.mean, self.cov, truth)
        for name in ("turned", "scaled"):
            figures |= variant(calibration(self.mean, getattr(self, name), truth), name)
        return figures


def affine_readout(known: tuple[NDArray, NDArray], truth: NDArray, test: tuple[NDArray, NDArray]) -> Decoded:
    """The truth read out of a state by least squares.

    Args:
        known: mean ``(series, steps, n)`` and covariance ``(..., n, n)`` of the state on the read-out's sequences.
        truth: of these, ``(series, steps, d)``.
        test: mean and covariance of the state to read the truth out of.

    Returns:
        ``cov``: see `ldm_filter.metrics.decoded_covariance`. ``turned``: it depends on the estimate (`ldm_filter.metrics.covariance_regression`, on
        the read-out's sequences). ``scaled``: ``cov`` times one factor, NEES / d on the last quarter of the read-out's sequences after a fit on the
        others.
    """
    fit = metrics.affine_fit(known[0], truth)
    mean, seen = fit.apply(test[0]), fit.apply(known[0])
    cov, seen_cov = (metrics.decoded_covariance(fit.matrix, part[1], fit.residual_cov, reference=known[1]) for part in (test, known))
    turned = metrics.covariance_regression(seen, truth - seen, seen_cov).apply(mean, cov)
    return Decoded(mean, cov, turned, _held_out_scale(*known, truth) * cov)


def _held_out_scale(mean: NDArray, cov: NDArray, truth: NDArray) -> float:
    cut = 3 * len(mean) // 4
    fit = metrics.affine_fit(mean[:cut], truth[:cut])
    held = metrics.decoded_covariance(fit.matrix, cov[cut:], fit.residual_cov, reference=cov[:cut])
    return metrics.variance_scale(fit.apply(mean[cut:]), held, truth[cut:])
