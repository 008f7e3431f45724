"""Plain oracles in NumPy, one series at a time, written for reading: loops, inverses, and the dense joint Gaussian."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Model", "condition", "dense_posterior", "joint", "kalman_filter", "log_density", "scalar_kalman_means"]

Array = NDArray[np.float64]


class Model(NamedTuple):
    """One series of a state-space model, every field per step: A, Q ``(T, n, n)``, a ``(T, n)``, C ``(T, m, n)``, c ``(T, m)``, R ``(T, m, m)``."""

    A: Array
    a: Array
    Q: Array
    C: Array
    c: Array
    R: Array
    h0: Array
    P0: Array


def log_density(x: Array, mean: Array, cov: Array) -> float:
    """log N(x; mean, cov), 0 for an empty x."""
    d = x - mean
    return float(-0.5 * (d @ np.linalg.solve(cov, d) + np.linalg.slogdet(cov)[1] + len(x) * np.log(2.0 * np.pi))) if len(x) else 0.0


def kalman_filter(model: Model, z: Array, observed: Any = None) -> dict[str, Array]:
    """The textbook loop; missing channels ``observed (T, m)`` are cut out of C, R and z. The gain uses a plain inverse."""
    steps, m = z.shape
    seen = np.ones((steps, m), bool) if observed is None else observed
    out: dict[str, list[Any]] = {k: [] for k in ("predicted_mean", "predicted_cov", "filtered_mean", "filtered_cov", "log_likelihood")}
    h, P = model.h0, model.P0
    for t in range(steps):
        if t > 0:
            h, P = model.A[t] @ h + model.a[t], model.A[t] @ P @ model.A[t].T + model.Q[t]
        out["predicted_mean"].append(h)
        out["predicted_cov"].append(P)
        s = seen[t]
        C, R, y = model.C[t][s], model.R[t][np.ix_(s, s)], z[t][s] - model.c[t][s]
        S = C @ P @ C.T + R
        out["log_likelihood"].append(log_density(y, C @ h, S))
        K = P @ C.T @ np.linalg.inv(S)
        h, P = h + K @ (y - C @ h), P - K @ S @ K.T
        out["filtered_mean"].append(h)
        out["filtered_cov"].append(P)
    return {k: np.array(v) for k, v in out.items()}


def scalar_kalman_means(A: Array, Q: Array, C: Array, R: float, h: Array, P: Array, z: Array) -> Array:
    """Filtered means ``(T, n)`` of a constant model without offsets and with one channel ``z (T,)``: short enough for very long series."""
    means = np.empty((len(z), len(h)))
    for t, y in enumerate(z):
        if t:
            h, P = A @ h, A @ P @ A.T + Q
        PC = P @ C
        gain = PC / (C @ PC + R)
        h, P = h + gain * (y - C @ h), P - gain[:, None] * PC
        means[t] = h
    return means


def joint(model: Model) -> tuple[Array, Array, Array, Array, Array]:
    """The joint Gaussian of all states and all measurements: means of both, cov of states, cross-cov, cov of measurements; flattened over time."""
    steps, m, n = model.C.shape
    # h = M w + k with the stacked noise w = (h_0 - its mean, w_1, ..): M is block lower triangular
    M = np.zeros((steps * n, steps * n))
    mean = np.zeros((steps, n))
    noise = np.zeros((steps * n, steps * n))
    for t in range(steps):
        here = slice(t * n, (t + 1) * n)
        noise[here, here] = model.Q[t] if t else model.P0
        M[here, here] = np.eye(n)
        if t:
            M[here, : t * n] = model.A[t] @ M[(t - 1) * n : t * n, : t * n]
        mean[t] = model.A[t] @ mean[t - 1] + model.a[t] if t else model.h0
    cov = M @ noise @ M.T
    H, R = np.zeros((steps * m, steps * n)), np.zeros((steps * m, steps * m))
    for t in range(steps):
        H[t * m : (t + 1) * m, t * n : (t + 1) * n] = model.C[t]
        R[t * m : (t + 1) * m, t * m : (t + 1) * m] = model.R[t]
    return mean.ravel(), H @ mean.ravel() + model.c.ravel(), cov, cov @ H.T, H @ cov @ H.T + R


def condition(mean: Array, cov: Array, cross: Array, z: Array, z_mean: Array, z_cov: Array) -> tuple[Array, Array]:
    """Gaussian conditioning."""
    if not len(z):
        return mean, cov
    gain = np.linalg.solve(z_cov, cross.T).T
    return mean + gain @ (z - z_mean), cov - gain @ cross.T


def dense_posterior(model: Model, z: Array, observed: Any = None, upto: int | None = None) -> tuple[Array, Array, float]:
    """p(all h | z_0 .. z_upto), dense, and log p(z_0 .. z_upto): mean ``(T n,)``, cov ``(T n, T n)``."""
    steps, m = z.shape
    seen = np.ones((steps, m), bool) if observed is None else np.array(observed)
    if upto is not None:
        seen = seen & (np.arange(steps) <= upto)[:, None]
    mean, z_mean, cov, cross, z_cov = joint(model)
    s = seen.ravel()
    y = z.ravel()[s]
    post_mean, post_cov = condition(mean, cov, cross[:, s], y, z_mean[s], z_cov[np.ix_(s, s)])
    return post_mean, post_cov, log_density(y, z_mean[s], z_cov[np.ix_(s, s)])
