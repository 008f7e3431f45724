"""The uncertainty of a target that is read out of a state: from the filter's covariance, and from how the read-out's errors turn with the target."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import linalg
from scipy.optimize import minimize_scalar

from ldm_filter.metrics.arrays import Array, as_array, as_covariance, as_mask, check_finite, match, whiten

__all__ = ["CovarianceRegression", "covariance_regression", "decoded_covariance", "variance_scale"]

STARTS, TRIAL_ITERATIONS, ROUNDS = 4, 15, 3
# Of the errors' mean variance; stays in every direction, so that none is ever claimed to be known exactly.
SLIVER = 1e-6


def decoded_covariance(matrix: Any, cov: Any, residual_cov: Any, reference: Any = None) -> Array:
    """Covariance of a target read out of a state, alpha W P W' + (residual - alpha mean(W P_ref W')), so that on average it is the residual's.

    The residuals of the read-out's fit already hold the filter's own error, on average W P W'; only the rest is added. (Adding the whole
    residual would count the filter's error twice and turn a true 95 % ellipse into one of 99.8 %.) alpha is the largest number up to 1 that
    leaves this rest positive semi-definite: 1 where the filter's covariance fits within the residual; where it overstates the error, it is
    trusted in proportion.

    Args:
        matrix: W, ``(d, n)``.
        cov: P, ``(..., n, n)`` of the states to decode.
        residual_cov: ``(d, d)`` of the fit, see `AffineMap`.
        reference: P on the data of the fit, ``(..., n, n)``; default: ``cov`` itself.

    Returns:
        ``(..., d, d)``.

    Raises:
        ValueError: shapes do not fit together, a NaN, or a residual covariance that is not positive definite.

    >>> decoded_covariance([[1.0]], [[[1.0]], [[3.0]]], [[2.5]]).ravel().tolist()
    [1.5, 3.5]
    >>> decoded_covariance([[1.0]], [[[1.0]], [[3.0]]], [[1.0]]).ravel().tolist()
    [0.5, 1.5]
    """
    w, p, residual = as_array("matrix", matrix), as_array("cov", cov), as_array("residual_cov", residual_cov)
    ref = p if reference is None else as_array("reference", reference)
    d, n = w.shape if w.ndim == 2 else (-1, -1)
    for name, value, size in (("cov", p, n), ("reference", ref, n), ("residual_cov", residual, d)):
        if value.ndim < 2 or value.shape[-2:] != (size, size):
            raise ValueError(f"{name} has shape {value.shape}, matrix {w.shape}; expected W (d, n), P (..., n, n) and a residual (d, d)")
        check_finite(name, value)
    check_finite("matrix", w)
    mean = w @ ref.reshape(-1, n, n).mean(0) @ w.T
    try:
        # residual - alpha mean >= 0 as long as alpha is at most 1 / lambda for every eigenvalue of mean v = lambda residual v
        largest = linalg.eigh(mean, residual, eigvals_only=True)[-1]
    except linalg.LinAlgError:
        smallest = np.linalg.eigvalsh(residual)[0]
        raise ValueError(
            f"residual_cov is not positive definite: smallest eigenvalue {smallest:.3g}; leave out targets that are known exactly"
        ) from None
    alpha = min(1.0, 1.0 / largest) if largest > 0 else 1.0
    return w @ (alpha * p) @ w.T + (residual - alpha * mean)


def variance_scale(mean: Any, cov: Any, truth: Any, mask: Any = None) -> float:
    """The one factor c of greatest Gaussian likelihood for all covariances, c = sum_t e' P^-1 e / (number of entries): NEES / d of held-out data.

    Post-hoc: measured on data that neither the filter nor the read-out was fitted on, then applied to new data. Above 1, the covariances claimed
    too much. Source: Kuleshov, Fenner & Ermon 2018 call the idea recalibration; one factor keeps the shape of every ellipse.

    Args:
        mean, cov, truth: ``(..., d)``, ``(..., d, d)``, ``(..., d)``. mask: what counts, ``(...)`` or ``(..., d)``.

    Raises:
        ValueError: as `ldm_filter.metrics.gaussian_log_likelihood`, and where nothing counts.

    >>> variance_scale([[0.0], [0.0]], [[1.0]], [[2.0], [2.0]])
    4.0
    """
    x, y, counts = match(mean, truth, mask, ("mean", "truth"))
    white, _ = whiten(y - x, as_covariance(cov, counts))
    number = int(counts.sum())
    if not number:
        raise ValueError("mask leaves no entry that counts; give held-out data with targets")
    return float(np.square(white).sum() / number)


class CovarianceRegression(NamedTuple):
    """Covariance that depends on where the target is, Cov(e | x) = s L M(x) L',  M(x) = Psi + (B u)(B u)',  u = (1, (x - centre) / scale).

    L L' is a covariance given beforehand (of the filter, say), and M says how the errors are stretched and turned against it. The scalar
    s = exp(power (log det(L L') / d - level)) says how much more (power > 0) or less than it the errors grow from step to step.

    Attributes:
        base: Psi, ``(d, d)``.
        direction: B, ``(d, 1 + p)``.
        centre, scale: of the regressors, ``(p,)``.
        power, level: numbers; 0 where the given covariance is the same at all steps.
        log_likelihood: of the errors whitened by L, mean per step, in nats; `covariance_regression` raises it.
    """

    base: Array
    direction: Array
    centre: Array
    scale: Array
    power: float
    level: float
    log_likelihood: float

    def apply(self, x: Any, cov: Any = None) -> Array:
        """Covariance ``(..., d, d)`` at ``x (..., p)``, with L from ``cov (..., d, d)``; default L = I."""
        along = _regressors(as_array("x", x), self.centre, self.scale) @ self.direction.T
        turned = self.base + along[..., :, None] * along[..., None, :]
        if cov is None:
            return turned
        factor = np.linalg.cholesky(as_array("cov", cov))
        size = 2.0 * np.log(np.diagonal(factor, axis1=-2, axis2=-1)).mean(-1)  # log det(L L') / d
        growth = np.exp(self.power * (size - self.level))[..., None, None]
        return growth * (factor @ turned @ np.swapaxes(factor, -1, -2))


def covariance_regression(x: Any, error: Any, cov: Any = None, mask: Any = None, *, iterations: int = 500) -> CovarianceRegression:
    """Maximum-likelihood fit of a covariance that depends on x, Cov(e | x) = s L M(x) L' (see `CovarianceRegression`), by EM.

    Why: a Kalman filter in its constant regime, with an affine read-out, has *one* ellipse for all steps. Where the target moves on a
    curve the true errors lie along the curve, and turn with it. On a circle, errors along the tangent alone have, under the average
    (round) covariance, NEES = 2 chi2_1: its 95 % ellipse holds P(2 chi2_1 < 5.99) = 91.7 % of them, its 50 % ellipse 59.5 %. With
    M(x) the ellipse is narrow across the curve and long along it, and holds every level. And where the covariance varies, the errors seldom
    grow in just its proportion (part of the read-out's error has nothing to do with the noise): its power is fitted in turn with M, without
    which clean steps are covered too often and noisy ones too seldom.

    Args:
        x: ``(..., p)`` what the covariance depends on, for example the estimate itself.
        error: ``(..., d)`` truth minus estimate, on the read-out's training sequences.
        cov: ``(..., d, d)`` or one that broadcasts to it, of the errors as known beforehand; default I.
        mask: ``(...)``, True where a step counts.
        iterations: most EM steps; it stops before where the likelihood stands.

    Raises:
        ValueError: too few steps for the number of parameters, shapes that do not fit, a NaN that counts, or a covariance not positive definite.

    Source: Hoff & Niu 2012, A covariance regression model, Statistica Sinica 22 (the rank-1 model, as e = g B u + r with g ~ N(0, 1));
    Harvey 1976, Estimating regression models with multiplicative heteroscedasticity, Econometrica 44 (the power).

    >>> angle = np.linspace(0, 200, 4000)
    >>> tangent = np.stack([-np.sin(angle), np.cos(angle)], axis=-1)
    >>> error = tangent * np.random.default_rng(0).normal(size=(4000, 1))
    >>> fit = covariance_regression(np.stack([np.cos(angle), np.sin(angle)], axis=-1), error)
    >>> fit.apply([1.0, 0.0]).round(1).tolist()  # at the right of the circle the tangent is vertical
    [[0.0, 0.0], [0.0, 1.0]]
    """
    place, white = as_array("x", x), as_array("error", error)
    if place.ndim < 2 or place.shape[:-1] != white.shape[:-1]:
        raise ValueError(f"x has shape {place.shape} and error {white.shape}; expected (..., p) and (..., d) with the same leading axes")
    keep = as_mask(mask, (*place.shape[:-1], 1))[..., 0]
    check_finite("x", place, np.broadcast_to(keep[..., None], place.shape))
    white, _, counts = match(white, np.zeros_like(white), np.broadcast_to(keep[..., None], white.shape), ("error", "zero"))
    size = np.zeros(keep.shape)
    if cov is not None:
        given = as_covariance(cov, counts)
        white, size = whiten(white, given)[0], np.broadcast_to(np.linalg.slogdet(given)[1] / white.shape[-1], keep.shape)
    place, white, size = place[keep], white[keep], size[keep]
    d, p = white.shape[1], place.shape[1]
    if len(white) < 4 * (1 + p + d):
        raise ValueError(f"x has {len(white)} steps that count; a covariance of {d} targets that depends on {p} numbers needs {4 * (1 + p + d)}")
    centre, scale, level = place.mean(0), np.maximum(place.std(0), 1e-12), float(size.mean())
    regressors = _regressors(place, centre, scale)
    base, direction, power, value = _fit(white, regressors, size - level, iterations)
    return CovarianceRegression(base, direction, centre, scale, power, level, value)


def _fit(white: Array, regressors: Array, size: Array, iterations: int) -> tuple[Array, Array, float, float]:
    """Psi, B, power and log-likelihood: EM for the first two and a line search for the third, in turn."""
    rng = np.random.default_rng(0)  # B = 0 is a saddle: start off it, at a few places
    trials = [_expectation_maximisation(white, regressors, *_start(white, regressors, rng), TRIAL_ITERATIONS) for _ in range(STARTS)]
    base, direction, _ = max(trials, key=lambda trial: trial[2])
    base, direction, value = _expectation_maximisation(white, regressors, base, direction, iterations)
    power, varies = 0.0, float(np.ptp(size)) > 1e-6
    for _ in range(ROUNDS if varies else 0):
        power = _power(size, _whitened_squares(white, regressors, base, direction)[0])
        base, direction, value = _expectation_maximisation(np.exp(-0.5 * power * size)[:, None] * white, regressors, base, direction, iterations)
    return base, direction, power, value


def _power(size: Array, squared: Array) -> float:
    """b of greatest likelihood where e' M^-1 e of a step grows as exp(b size), size of mean 0, with the best common factor."""
    return float(minimize_scalar(lambda b: np.log(np.mean(np.exp(-b * size) * squared)), bounds=(-1.0, 3.0), method="bounded").x)


def _regressors(x: Array, centre: Array, scale: Array) -> Array:
    return np.concatenate([np.ones((*x.shape[:-1], 1)), (x - centre) / scale], axis=-1)


def _start(white: Array, regressors: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Half of the covariance constant, the other half along a random B."""
    cov = white.T @ white / len(white)
    cov = cov + SLIVER * np.trace(cov) / len(cov) * np.eye(len(cov))
    draw = rng.standard_normal((len(cov), regressors.shape[1]))
    return 0.5 * cov, np.sqrt(0.5 / regressors.shape[1]) * np.linalg.cholesky(cov) @ draw


def _expectation_maximisation(white: Array, regressors: Array, base: Array, direction: Array, iterations: int) -> tuple[Array, Array, float]:
    """Parameter-expanded EM (Liu, Rubin & Wu 1998) for e = g B u + r, g ~ N(0, 1), r ~ N(0, Psi): Psi, B and the mean log-likelihood."""
    number, d = white.shape
    sliver = SLIVER * float(np.square(white).mean()) * np.eye(d)
    before = -np.inf
    value = _log_likelihood(white, regressors, base, direction)
    for _ in range(iterations):
        if value - before < 1e-9:
            break
        before = value
        along = regressors @ direction.T
        gain = np.linalg.solve(base, along.T).T
        variance = 1.0 / (1.0 + (gain * along).sum(-1))  # of g given e, and its mean
        mean = variance * (gain * white).sum(-1)
        second = np.square(mean) + variance
        weighted = second[:, None] * regressors
        direction = np.linalg.lstsq(regressors.T @ weighted, regressors.T @ (mean[:, None] * white), rcond=None)[0].T
        along = regressors @ direction.T
        rest = white - mean[:, None] * along
        base = (rest.T @ rest + (variance[:, None] * along).T @ along) / number + sliver
        direction = direction * np.sqrt(second.mean())  # Var(g) free for one step, then folded into B: plain EM crawls where Psi is small
        value = _log_likelihood(white, regressors, base, direction)
    return base, direction, value


def _log_likelihood(white: Array, regressors: Array, base: Array, direction: Array) -> float:
    """Mean log N(e; 0, Psi + (B u)(B u)')."""
    squared, log_det = _whitened_squares(white, regressors, base, direction)
    return float(-0.5 * (squared + log_det + white.shape[1] * np.log(2 * np.pi)).mean())


def _whitened_squares(white: Array, regressors: Array, base: Array, direction: Array) -> tuple[Array, Array]:
    """e' M^-1 e and log det M of each step, by the matrix determinant lemma."""
    along = regressors @ direction.T
    factor = np.linalg.cholesky(base)
    e, b = (linalg.solve_triangular(factor, part.T, lower=True).T for part in (white, along))
    spread = 1.0 + np.square(b).sum(-1)
    return np.square(e).sum(-1) - np.square((e * b).sum(-1)) / spread, 2.0 * np.log(np.diagonal(factor)).sum() + np.log(spread)
