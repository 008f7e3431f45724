"""How good an estimate is, and how honest its uncertainty: plain functions on arrays or tensors.

Order of arguments everywhere: what was estimated first (``mean``, ``cov`` or ``std``), the truth after it. The last axis holds the
dimensions of the target, all axes before it are steps (series, time). Functions of one step (`nees`, `nis`, `pit`, `crps_normal`,
`gaussian_log_likelihood`) return one number per step or entry, with NaN where ``mask`` leaves it out; the others return a float.

``mask`` is boolean, True where an entry counts: per step ``(..., )`` or per entry ``(..., d)``. A NaN that counts is an error.
"""

from __future__ import annotations

from ldm_filter.metrics.accuracy import AffineMap, affine_fit, affine_r2, db, mse, noise_corr, r2, rmse
from ldm_filter.metrics.bootstrap import Bounded, PITHistogram, bounded_mean, bounded_scores, pit_histogram
from ldm_filter.metrics.calibration import (
    chi2_bounds,
    coverage,
    crps_normal,
    gaussian_log_likelihood,
    nees,
    nis,
    nll,
    pit,
    pit_distance,
    scores,
)
from ldm_filter.metrics.conformal import conformal_widths
from ldm_filter.metrics.decoding import CovarianceRegression, covariance_regression, decoded_covariance, variance_scale
from ldm_filter.metrics.identifiability import (
    AffineR2,
    Injectivity,
    affine_r2_both_ways,
    dynamics_r2,
    eigenvalue_error,
    local_injectivity,
    mcc,
    neighbour_ratio,
    procrustes_disparity,
)
from ldm_filter.metrics.residuals import Whiteness, autocorrelation, whiteness

__all__ = [
    "AffineMap",
    "AffineR2",
    "Bounded",
    "CovarianceRegression",
    "Injectivity",
    "PITHistogram",
    "Whiteness",
    "affine_fit",
    "affine_r2",
    "affine_r2_both_ways",
    "autocorrelation",
    "bounded_mean",
    "bounded_scores",
    "chi2_bounds",
    "conformal_widths",
    "covariance_regression",
    "coverage",
    "crps_normal",
    "db",
    "decoded_covariance",
    "dynamics_r2",
    "eigenvalue_error",
    "gaussian_log_likelihood",
    "local_injectivity",
    "mcc",
    "mse",
    "nees",
    "neighbour_ratio",
    "nis",
    "nll",
    "noise_corr",
    "pit",
    "pit_distance",
    "pit_histogram",
    "procrustes_disparity",
    "r2",
    "rmse",
    "scores",
    "variance_scale",
    "whiteness",
]
