"""The Kalman filter and its adjoint as GPU kernels, where all sequences share their covariances.

The covariances' recursion runs once, in float64, and the means of all sequences under its gains, one sequence for each thread.
Backwards the sums over the batch of h v', g v v' and g are all that the covariances need of the data. The equations are in
:mod:`ldm_filter.core.triton_step`.
"""

# ruff: noqa: RUF005 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_matrix import add, lower_product, outer, product, read, scale, subtract, symmetric, transpose, write, zeros
from ldm_filter.core.triton_step import (
    arriving,
    chosen,
    collect,
    covariance_adjoint,
    finish,
    gain,
    joseph,
    log_density,
    mean_adjoint,
    predicted_cov,
    predicted_mean,
    put,
)

__all__ = ["covariance_backward", "covariance_forward", "mean_backward", "mean_forward"]


@triton.jit
def covariance_forward(A, Q, C, R, P0, out_Pp, out_P, out_K, out_L, failed, T, N: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr):
    """P^-, P, K, the lower triangle of L, and the first step without a factor."""
    P = zeros(N * N, 0, DTYPE)
    b = tl.program_id(0)
    first = b + T
    for step in range(T):
        t = tl.cast(step, tl.int32)
        _, _, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, DTYPE)
        noise = symmetric(read(R, b, t, T, t >= 0, M * M, DTYPE), M)
        K, J, L, _, positive = gain(Pp, read(C, b, t, T, t >= 0, M * N, DTYPE), noise, N, M)
        first = tl.where(positive | (first < T), first, t)
        P = joseph(Pp, K, J, noise, N, M)
        write(out_Pp, b, t, T, t >= 0, Pp, N * N)
        write(out_P, b, t, T, t >= 0, P, N * N)
        write(out_K, b, t, T, t >= 0, K, N * M)
        write(out_L, b, t, T, t >= 0, L, M * (M + 1) // 2)
    tl.store(failed, first)


@triton.jit
def factor_of(L, b, t, T, M: tl.constexpr, DTYPE: tl.constexpr):
    """The factor of a step and the inverses of its diagonal."""
    factor = read(L, b, t, T, t >= 0, M * (M + 1) // 2, DTYPE)
    inverse = ()
    for i in tl.static_range(M):
        inverse = inverse + (1.0 / factor[i * (i + 1) // 2 + i],)
    return factor, inverse


@triton.jit
def mean_forward(
    A, C, a, z, h0, K, L, seen, out_p, out_f, density, batch, T, N: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr
):
    """Filtered (and predicted, where there is a place for them) means and log-densities."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    f = zeros(N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(step, tl.int32)
        p = predicted_mean(read(A, b, t, T, t > 0, N * N, DTYPE), a, h0, f, b, t, T, N, DTYPE)
        L_t, inverse = factor_of(L, b, t, T, M, DTYPE)
        e = subtract(read(z, b, t, T, t >= 0, M, DTYPE), product(read(C, b, t, T, t >= 0, M * N, DTYPE), p, M, N, 1), M)
        f = add(p, product(read(K, b, t, T, t >= 0, N * M, DTYPE), e, N, M, 1), N)
        if out_p[0] is not None:
            write(out_p, b, t, T, inside, p, N)
        write(out_f, b, t, T, inside, f, N)
        write(density, b, t, T, inside, (log_density(e, L_t, inverse, read(seen, b, t, T, t >= 0, 1, DTYPE)[0], M),), 1)


@triton.jit
def mean_backward(
    A,
    C,
    a,
    z,
    h0,
    K,
    L,
    out_f,
    to_p,
    to_f,
    to_density,
    dA,
    dC,
    da,
    dz,
    dh0,
    sum_hv,
    sum_vv,
    sum_g,
    batch,
    T,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of the data and of what moves it, and the sums over the block that the covariances need."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    h, sum_a = zeros(N, BLOCK, DTYPE), zeros(N, BLOCK, DTYPE)
    sum_A, sum_C = zeros(N * N, BLOCK, DTYPE), zeros(M * N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        transition = read(A, b, t, T, t > 0, N * N, DTYPE)
        observation = read(C, b, t, T, t >= 0, M * N, DTYPE)
        K_t = read(K, b, t, T, t >= 0, N * M, DTYPE)
        L_t, inverse = factor_of(L, b, t, T, M, DTYPE)
        f = read(out_f, b, tl.maximum(t - 1, 0), T, t > 0, N, DTYPE)
        p = predicted_mean(transition, a, h0, f, b, t, T, N, DTYPE)
        e = subtract(read(z, b, t, T, t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        h = add(h, arriving(to_f, b, t, T, inside, N, BLOCK, DTYPE), N)
        g = arriving(to_density, b, t, T, inside, 1, BLOCK, DTYPE)[0]

        v, at_z, u = mean_adjoint(h, g, e, K_t, observation, L_t, inverse, N, M)
        put(sum_hv, b, t, T, inside, outer(h, v, N, M), N * M)
        put(sum_vv, b, t, T, inside, outer(scale(g, v, M), v, M, M), M * M)
        put(sum_g, b, t, T, inside, (g,), 1)
        u = add(u, arriving(to_p, b, t, T, inside, N, BLOCK, DTYPE), N)
        write(dz, b, t, T, inside, at_z, M)
        if dC[0] is not None:
            sum_C = collect(dC, sum_C, b, t, T, inside, scale(-1.0, outer(at_z, p, M, N), M * N), M * N)
        if dA[0] is not None:
            sum_A = collect(dA, sum_A, b, t, T, inside, outer(u, f, N, N), N * N)
        sum_a = collect(da, sum_a, b, t, T, inside, chosen(t > 0, u, zeros(N, BLOCK, DTYPE), N), N)
        h = chosen(t > 0, product(transpose(transition, N, N), u, N, N, 1), u, N)
    write(dh0, b, tl.program_id(0) * 0, T, inside, h, N)
    finish(dA, sum_A, b, T, inside, N * N)
    finish(da, sum_a, b, T, inside, N)
    finish(dC, sum_C, b, T, inside, M * N)


@triton.jit
def covariance_backward(
    A, Q, C, R, P0, out_P, sum_hv, sum_vv, sum_g, to_Pp, to_P, dA, dQ, dC, dR, dP0, T, N: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr
):
    """The gradients of the model from those that arrive at the covariances and from the sums over the batch of h v', g v v' and g."""
    b = tl.program_id(0)
    G = zeros(N * N, 0, DTYPE)
    sum_A, sum_Q, sum_C, sum_R = zeros(N * N, 0, DTYPE), zeros(N * N, 0, DTYPE), zeros(M * N, 0, DTYPE), zeros(M * M, 0, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        P = read(out_P, b, tl.maximum(t - 1, 0), T, t > 0, N * N, DTYPE)
        transition, AP, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, DTYPE)
        observation = read(C, b, t, T, t >= 0, M * N, DTYPE)
        K, J, L, inverse, _ = gain(Pp, observation, symmetric(read(R, b, t, T, t >= 0, M * M, DTYPE), M), N, M)
        G = add(G, symmetric(arriving(to_P, b, t, T, t >= 0, N * N, 0, DTYPE), N), N * N)
        hv = read(sum_hv, b, t, T, t >= 0, N * M, DTYPE)
        vv = symmetric(read(sum_vv, b, t, T, t >= 0, M * M, DTYPE), M)
        g = read(sum_g, b, t, T, t >= 0, 1, DTYPE)[0]

        U, at_R, at_C = covariance_adjoint(G, hv, vv, g, K, J, L, inverse, observation, N, M, 0, DTYPE)
        U = add(U, symmetric(arriving(to_Pp, b, t, T, t >= 0, N * N, 0, DTYPE), N), N * N)
        sum_R = collect(dR, sum_R, b, t, T, t >= 0, at_R, M * M)
        sum_C = collect(dC, sum_C, b, t, T, t >= 0, product(at_C, Pp, M, N, N), M * N)
        sum_A = collect(dA, sum_A, b, t, T, t >= 0, scale(2.0, product(U, AP, N, N, N), N * N), N * N)
        sum_Q = collect(dQ, sum_Q, b, t, T, t >= 0, chosen(t > 0, U, zeros(N * N, 0, DTYPE), N * N), N * N)
        UA = product(U, transition, N, N, N)
        G = chosen(t > 0, lower_product(zeros(N * N, 0, DTYPE), transpose(transition, N, N), UA, N, N), U, N * N)
    finish(dP0, G, b, T, b >= 0, N * N)
    finish(dA, sum_A, b, T, b >= 0, N * N)
    finish(dQ, sum_Q, b, T, b >= 0, N * N)
    finish(dC, sum_C, b, T, b >= 0, M * N)
    finish(dR, sum_R, b, T, b >= 0, M * M)
