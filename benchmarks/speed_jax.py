"""Kalman filters in JAX, jitted, in float64 (which the runner switches on): dynamax, and two of our own, the quickest variants that we found.

Where the covariance is shared by the batch, `vmap` computes it once, and it is returned once. Data come and moments leave in the
layout that suits each best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from benchmarks.speed_libraries import Entrant, Result, Run
from benchmarks.speed_problems import INPUTS, Problem

__all__ = ["JAX"]

_LOG_2PI = math.log(2 * math.pi)


def _run(make: Callable[[bool], Callable[..., Any]], problem: Problem, backward: bool, axes: str) -> Run:
    """A jitted filter on data with their axes (b: sequence, t: time, v: vector) in the order of ``axes``.

    Args:
        make: for a shared covariance or not, the filter ``(A, Q, C, R, h0, P0, z) -> (mean, cov, log-likelihood (B,))``.
        problem, backward: as for every entrant.
        axes: of the measurements; those of R have one vector axis more, and the moments come likewise.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    *model, z = (x.numpy() for x in problem[:7])
    if not problem.constant:
        model[3] = np.ascontiguousarray(np.transpose(model[3], _order(axes.replace("v", "vw"))))
    arguments = [jax.device_put(x) for x in (*model, np.ascontiguousarray(np.transpose(z, _order(axes))))]
    weight = jax.device_put(problem.weight.numpy())
    function = _jitted(make, problem.constant, backward)

    def read(output: Any) -> Result:
        (mean, cov, log_likelihood), gradients = output if backward else (output, None)
        mean, cov = np.asarray(mean), np.asarray(cov)
        # shared by the batch: (T, n, n[, 1])
        cov = cov.reshape(1, -1, *cov.shape[1:3]) if problem.constant else np.transpose(cov, _back(axes.replace("v", "vw")))
        result = Result(np.transpose(mean, _back(axes)), cov, np.asarray(log_likelihood))
        return result if gradients is None else result._replace(gradients=_natural(gradients, problem, axes))

    if backward:
        return Run(lambda: jax.block_until_ready(function(arguments, weight)), read)
    return Run(lambda: jax.block_until_ready(function(arguments)), read)


@cache
def _jitted(make: Callable[[bool], Callable[..., Any]], constant: bool, backward: bool) -> Callable[..., Any]:
    """One function for each filter, so that the check and the clock see the same compiled code."""
    import jax

    filter_all = make(constant)

    def loss(arguments: list[Any], weight: Any) -> tuple[Any, Any]:
        outputs = filter_all(*arguments)
        return (weight * outputs[2]).sum(), outputs

    def value_and_gradients(arguments: list[Any], weight: Any) -> tuple[Any, Any]:
        (_, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(arguments, weight)
        return outputs, gradients

    return jax.jit(value_and_gradients if backward else lambda arguments: filter_all(*arguments))


def _order(axes: str) -> list[int]:
    """How to transpose ``btv[w]`` to ``axes``."""
    return ["btvw".index(axis) for axis in axes]


def _back(axes: str) -> list[int]:
    return [axes.index(axis) for axis in "btvw"[: len(axes)]]


def _natural(gradients: Any, problem: Problem, axes: str) -> tuple[Any, ...]:
    named = dict(zip(INPUTS, (np.asarray(g) for g in gradients), strict=True))
    named["z"] = np.transpose(named["z"], _back(axes))
    if not problem.constant:
        named["R"] = np.transpose(named["R"], _back(axes.replace("v", "vw")))
    return tuple(named.values())


# --- dynamax


def _make_dynamax(constant: bool) -> Callable[..., Any]:
    import jax
    from dynamax.linear_gaussian_ssm.inference import lgssm_filter, make_lgssm_params

    def one(A: Any, Q: Any, C: Any, R: Any, h0: Any, P0: Any, z: Any) -> tuple[Any, Any, Any]:
        filtered = lgssm_filter(make_lgssm_params(h0, P0, A, Q, C, R), z)
        return filtered.filtered_means, filtered.filtered_covariances, filtered.marginal_loglik

    shared, own = (None, None, None), (None, None)
    return jax.vmap(one, (*shared, None if constant else 0, *own, 0), (0, None if constant else 0, 0))


# --- a scan over time under vmap, with a Cholesky factor


def _make_scan(constant: bool) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp
    from jax.scipy.linalg import cho_solve, solve_triangular

    def one(A: Any, Q: Any, C: Any, R: Any, h0: Any, P0: Any, z: Any) -> tuple[Any, Any, Any]:
        def step(predicted: Any, now: Any) -> tuple[Any, Any]:
            h, P = predicted
            z_t, R_t = (now, R) if constant else now
            CP = C @ P
            factor = jnp.linalg.cholesky(CP @ C.T + R_t)
            e = z_t - C @ h
            w = solve_triangular(factor, e, lower=True)
            density = -0.5 * (w @ w + len(e) * _LOG_2PI) - jnp.log(jnp.diagonal(factor)).sum()
            K = cho_solve((factor, True), CP).T
            h, P = h + K @ e, P - K @ CP
            P = 0.5 * (P + P.T)
            return (A @ h, A @ P @ A.T + Q), (h, P, density)

        mean, cov, density = jax.lax.scan(step, (h0, P0), z if constant else (z, R))[1]
        return mean, cov, density.sum()

    return jax.vmap(one, (None, None, None, None if constant else 1, None, None, 1), (1, None if constant else 1, 0))


# --- a scan with the batch in the last axis and the Cholesky factor written out: it becomes one fused, vectorised loop


def _make_lanes(constant: bool) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def whiten(S: Any, e: Any, CP: Any) -> tuple[Any, Any, Any]:
        """L^-1 e, L^-1 C P and log det L, row by row."""
        L: dict[tuple[int, int], Any] = {}
        w: list[Any] = []
        W: list[Any] = []
        for i in range(len(e)):
            for j in range(i + 1):
                s = S[i, j] - sum(L[i, k] * L[j, k] for k in range(j))
                L[i, j] = jnp.sqrt(s) if i == j else s / L[j, j]
            w.append((e[i] - sum(L[i, k] * w[k] for k in range(i))) / L[i, i])
            W.append((CP[i] - sum(L[i, k] * W[k] for k in range(i))) / L[i, i])
        return jnp.stack(w), jnp.stack(W), sum(jnp.log(L[i, i]) for i in range(len(e)))

    def filter_all(A: Any, Q: Any, C: Any, R: Any, h0: Any, P0: Any, z: Any) -> tuple[Any, Any, Any]:
        def step(predicted: Any, now: Any) -> tuple[Any, Any]:
            h, P = predicted
            z_t, R_t = (now, R[:, :, None]) if constant else now
            CP = jnp.einsum("mi,ijb->mjb", C, P)
            w, W, log_det = whiten(jnp.einsum("mjb,kj->mkb", CP, C) + R_t, z_t - C @ h, CP)
            density = -0.5 * ((w * w).sum(0) + len(C) * _LOG_2PI) - log_det
            h, P = h + jnp.einsum("mjb,mb->jb", W, w), P - jnp.einsum("mib,mjb->ijb", W, W)
            ahead = jnp.einsum("kjb,lj->klb", jnp.einsum("ki,ijb->kjb", A, P), A) + Q[:, :, None]
            return (A @ h, ahead), (h, P, density)

        batch = z.shape[-1]
        start = jnp.broadcast_to(h0[:, None], (len(h0), batch)), jnp.broadcast_to(P0[:, :, None], (*P0.shape, 1 if constant else batch))
        mean, cov, density = jax.lax.scan(step, start, z if constant else (z, R))[1]
        return mean, cov, density.sum(0)

    return filter_all


def _dynamax(problem: Problem, backward: bool) -> Run:
    return _run(_make_dynamax, problem, backward, "btv")


def _scan(problem: Problem, backward: bool) -> Run:
    return _run(_make_scan, problem, backward, "tbv")


def _lanes(problem: Problem, backward: bool) -> Run:
    return _run(_make_lanes, problem, backward, "tvb")


JAX = (
    # dynamax adds 1e-9 to the diagonal of every matrix that it inverts
    Entrant("dynamax", "dynamax", "dynamax", _dynamax, gradients=True, cut="", tolerance=1e-6),
    Entrant("JAX scan, vmap", "jax", "jax", _scan, gradients=True, cut=""),
    Entrant("JAX scan, batch last", "jax", "jax", _lanes, gradients=True, cut=""),
)
