"""The Kalman filter and its adjoint as GPU kernels, where all sequences share their covariances.

The covariances' recursion runs once, in float64, and the means of all sequences under its gains, one sequence for each thread.
Backwards the sums over the batch of h v', g v v' and g are all that the covariances need of the data. The equations are in
:mod:`ldm_filter.core.triton_step`.
"""

# ruff: noqa: RUF005 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_matrix import add, lower_product, moved, outer, places, product, read, scale, subtract, symmetric, transpose, write, zeros
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
)

__all__ = ["covariance_backward", "covariance_forward", "mean_backward", "mean_forward"]


@triton.jit
def covariance_forward(A, Q, C, R, P0, out_Pp, out_P, out_K, out_L, failed, T, N: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr):
    """P^-, P, K, the lower triangle of L, and the first step without a factor."""
    b = tl.program_id(0)
    fields = (A, Q, C, R, P0, out_Pp, out_P, out_K, out_L)
    counts: tl.constexpr = (N * N, N * N, M * N, M * M, N * N, N * N, N * N, N * M, M * (M + 1) // 2)
    at = places(fields, counts, b, b, 0, T, 9)
    P = zeros(N * N, 0, DTYPE)
    first = b + T
    for step in range(T):
        t = tl.cast(step, tl.int32)
        _, _, Pp = predicted_cov(at[0], at[1], at[4], P, t, N, DTYPE)
        noise = symmetric(read(at[3], t >= 0, M * M, DTYPE), M)
        K, J, L, _, positive = gain(Pp, read(at[2], t >= 0, M * N, DTYPE), noise, N, M)
        first = tl.where(positive | (first < T), first, t)
        P = joseph(Pp, K, J, noise, N, M)
        write(at[5], t >= 0, Pp, N * N)
        write(at[6], t >= 0, P, N * N)
        write(at[7], t >= 0, K, N * M)
        write(at[8], t >= 0, L, M * (M + 1) // 2)
        at = moved(at, fields, counts, 1, 0, 9)
    tl.store(failed, first)


@triton.jit
def factor_of(L, t, M: tl.constexpr, DTYPE: tl.constexpr):
    """The factor of a step and the inverses of its diagonal."""
    factor = read(L, t >= 0, M * (M + 1) // 2, DTYPE)
    inverse = ()
    for i in tl.static_range(M):
        inverse = inverse + (1.0 / factor[i * (i + 1) // 2 + i],)
    return factor, inverse


@triton.jit
def mean_forward(
    A, C, a, z, h0, K, L, seen, out_p, out_f, density, batch, T, still, N: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr
):
    """Filtered (and predicted, where there is a place for them) means and log-densities."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    fields = (A, C, a, z, h0, K, L, seen, out_p, out_f, density)
    counts: tl.constexpr = (N * N, M * N, N, M, N, N * M, M * (M + 1) // 2, 1, N, N, 1)
    at = places(fields, counts, b, tl.program_id(0) * 0, 0, T, 11)
    f = zeros(N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(step, tl.int32)
        p = predicted_mean(read(at[0], t > 0, N * N, DTYPE), at[2], at[4], f, t, N, DTYPE)
        L_t, inverse = factor_of(at[6], t, M, DTYPE)
        e = subtract(read(at[3], t >= 0, M, DTYPE), product(read(at[1], t >= 0, M * N, DTYPE), p, M, N, 1), M)
        f = add(p, product(read(at[5], t >= 0, N * M, DTYPE), e, N, M, 1), N)
        if out_p[0] is not None:
            write(at[8], inside, p, N)
        write(at[9], inside, f, N)
        write(at[10], inside, (log_density(e, L_t, inverse, read(at[7], t >= 0, 1, DTYPE)[0], M),), 1)
        at = moved(at, fields, counts, 1, still, 11)


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
    still,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of the data and of what moves it, and the sums over the block that the covariances need."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    inputs = (A, C, a, z, h0, K, L, to_p, to_f, to_density)
    counts: tl.constexpr = (N * N, M * N, N, M, N, N * M, M * (M + 1) // 2, N, N, 1)
    grads = (dA, dC, da, dz, dh0, sum_hv, sum_vv, sum_g)
    sizes: tl.constexpr = (N * N, M * N, N, M, N, N * M, M * M, 1)
    at = places(inputs, counts, b, tl.program_id(0) * 0, T - 1, T, 10)
    to = places(grads, sizes, b, tl.program_id(0), T - 1, T, 8)
    before = places((out_f,), (N,), b, tl.program_id(0) * 0, T - 2, T, 1)
    h, sum_a = zeros(N, BLOCK, DTYPE), zeros(N, BLOCK, DTYPE)
    sum_A, sum_C = zeros(N * N, BLOCK, DTYPE), zeros(M * N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        transition = read(at[0], t > 0, N * N, DTYPE)
        observation = read(at[1], t >= 0, M * N, DTYPE)
        K_t = read(at[5], t >= 0, N * M, DTYPE)
        L_t, inverse = factor_of(at[6], t, M, DTYPE)
        f = read(before[0], t > 0, N, DTYPE)
        p = predicted_mean(transition, at[2], at[4], f, t, N, DTYPE)
        e = subtract(read(at[3], t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        h = add(h, arriving(to_f, at[8], inside, N, BLOCK, DTYPE), N)
        g = arriving(to_density, at[9], inside, 1, BLOCK, DTYPE)[0]

        v, at_z, u = mean_adjoint(h, g, e, K_t, observation, L_t, inverse, N, M)
        write(to[5], inside, outer(h, v, N, M), N * M)
        write(to[6], inside, outer(scale(g, v, M), v, M, M), M * M)
        write(to[7], inside, (g,), 1)
        u = add(u, arriving(to_p, at[7], inside, N, BLOCK, DTYPE), N)
        write(to[3], inside, at_z, M)
        if dC[0] is not None:
            sum_C = collect(dC, to[1], sum_C, inside, scale(-1.0, outer(at_z, p, M, N), M * N), M * N)
        if dA[0] is not None:
            sum_A = collect(dA, to[0], sum_A, inside, outer(u, f, N, N), N * N)
        sum_a = collect(da, to[2], sum_a, inside, chosen(t > 0, u, zeros(N, BLOCK, DTYPE), N), N)
        h = chosen(t > 0, product(transpose(transition, N, N), u, N, N, 1), u, N)
        if t < 1:
            write(to[4], inside, h, N)
            finish(dA, to[0], sum_A, inside, N * N)
            finish(da, to[2], sum_a, inside, N)
            finish(dC, to[1], sum_C, inside, M * N)
        at = moved(at, inputs, counts, -1, still, 10)
        to = moved(to, grads, sizes, -1, still, 8)
        before = moved(before, (out_f,), (N,), -1, still, 1)


@triton.jit
def covariance_backward(
    A, Q, C, R, P0, out_P, sum_hv, sum_vv, sum_g, to_Pp, to_P, dA, dQ, dC, dR, dP0, T, N: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr
):
    """The gradients of the model from those that arrive at the covariances and from the sums over the batch of h v', g v v' and g."""
    b = tl.program_id(0)
    inputs = (A, Q, C, R, P0, sum_hv, sum_vv, sum_g, to_Pp, to_P)
    counts: tl.constexpr = (N * N, N * N, M * N, M * M, N * N, N * M, M * M, 1, N * N, N * N)
    grads = (dA, dQ, dC, dR, dP0)
    at = places(inputs, counts, b, b, T - 1, T, 10)
    to = places(grads, counts, b, b, T - 1, T, 5)
    before = places((out_P,), (N * N,), b, b, T - 2, T, 1)
    G = zeros(N * N, 0, DTYPE)
    sum_A, sum_Q, sum_C, sum_R = zeros(N * N, 0, DTYPE), zeros(N * N, 0, DTYPE), zeros(M * N, 0, DTYPE), zeros(M * M, 0, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        P = read(before[0], t > 0, N * N, DTYPE)
        transition, AP, Pp = predicted_cov(at[0], at[1], at[4], P, t, N, DTYPE)
        observation = read(at[2], t >= 0, M * N, DTYPE)
        K, J, L, inverse, _ = gain(Pp, observation, symmetric(read(at[3], t >= 0, M * M, DTYPE), M), N, M)
        G = add(G, symmetric(arriving(to_P, at[9], t >= 0, N * N, 0, DTYPE), N), N * N)
        hv = read(at[5], t >= 0, N * M, DTYPE)
        vv = symmetric(read(at[6], t >= 0, M * M, DTYPE), M)
        g = read(at[7], t >= 0, 1, DTYPE)[0]

        U, at_R, at_C = covariance_adjoint(G, hv, vv, g, K, J, L, inverse, observation, N, M, 0, DTYPE)
        U = add(U, symmetric(arriving(to_Pp, at[8], t >= 0, N * N, 0, DTYPE), N), N * N)
        sum_R = collect(dR, to[3], sum_R, t >= 0, at_R, M * M)
        sum_C = collect(dC, to[2], sum_C, t >= 0, product(at_C, Pp, M, N, N), M * N)
        sum_A = collect(dA, to[0], sum_A, t >= 0, scale(2.0, product(U, AP, N, N, N), N * N), N * N)
        sum_Q = collect(dQ, to[1], sum_Q, t >= 0, chosen(t > 0, U, zeros(N * N, 0, DTYPE), N * N), N * N)
        UA = product(U, transition, N, N, N)
        G = chosen(t > 0, lower_product(zeros(N * N, 0, DTYPE), transpose(transition, N, N), UA, N, N), U, N * N)
        at = moved(at, inputs, counts, -1, 0, 10)
        to = moved(to, grads, counts, -1, 0, 5)
        before = moved(before, (out_P,), (N * N,), -1, 0, 1)
    finish(dP0, to[4], G, b >= 0, N * N)
    finish(dA, to[0], sum_A, b >= 0, N * N)
    finish(dQ, to[1], sum_Q, b >= 0, N * N)
    finish(dC, to[2], sum_C, b >= 0, M * N)
    finish(dR, to[3], sum_R, b >= 0, M * M)
