"""The Kalman filter and its adjoint as a GPU kernel, where each sequence has covariances of its own.

One sequence for each thread, its state in registers, time inside the kernel: every input is read once and every output
written once. What all sequences share is read by all threads at once. The equations are in :mod:`ldm_filter.core.triton_step`.
"""

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
    lifted,
    log_density,
    mean_adjoint,
    predicted_cov,
    predicted_mean,
)

__all__ = ["filter_backward", "filter_forward"]


@triton.jit
def filter_forward(
    A,
    Q,
    C,
    R,
    P0,
    a,
    z,
    h0,
    seen,
    out_p,
    out_Pp,
    out_f,
    out_P,
    density,
    failed,
    batch,
    T,
    LIFT: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Filtered (and predicted, where there is a place for them) means and covariances, log-densities, the first step without a factor."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    f, P = zeros(N, BLOCK, DTYPE), zeros(N * N, BLOCK, DTYPE)
    first = tl.full((BLOCK,), 0, tl.int32) + T
    for step in range(T):
        t = tl.cast(step, tl.int32)
        transition, _, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, DTYPE)
        p = predicted_mean(transition, a, h0, f, b, t, T, N, DTYPE)
        observation = read(C, b, t, T, t >= 0, M * N, DTYPE)
        noise = symmetric(read(R, b, t, T, t >= 0, M * M, DTYPE), M)
        K, J, L, inverse, positive = gain(Pp, observation, noise, N, M)
        first = tl.where(positive | (first < T), first, t)
        e = subtract(read(z, b, t, T, t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        f = add(p, product(K, e, N, M, 1), N)
        P = joseph(Pp, K, J, noise, N, M)
        if out_p[0] is not None:
            write(out_p, b, t, T, inside, p, N)
            write(out_Pp, b, t, T, inside, lifted(Pp, LIFT, N), N * N)
        write(out_f, b, t, T, inside, f, N)
        write(out_P, b, t, T, inside, lifted(P, LIFT, N), N * N)
        write(density, b, t, T, inside, (log_density(e, L, inverse, read(seen, b, t, T, t >= 0, 1, DTYPE)[0], M),), 1)
    tl.store(failed + b, first, mask=inside)


@triton.jit
def filter_backward(
    A,
    Q,
    C,
    R,
    P0,
    a,
    z,
    h0,
    out_f,
    out_P,
    to_p,
    to_Pp,
    to_f,
    to_P,
    to_density,
    dA,
    dQ,
    dC,
    dR,
    dP0,
    da,
    dz,
    dh0,
    batch,
    T,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of all inputs (those of shared ones summed over the block) from those that arrive at the outputs."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    h, G = zeros(N, BLOCK, DTYPE), zeros(N * N, BLOCK, DTYPE)
    sum_A, sum_Q, sum_C = zeros(N * N, BLOCK, DTYPE), zeros(N * N, BLOCK, DTYPE), zeros(M * N, BLOCK, DTYPE)
    sum_R, sum_a = zeros(M * M, BLOCK, DTYPE), zeros(N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        before = tl.maximum(t - 1, 0)
        f = read(out_f, b, before, T, t > 0, N, DTYPE)
        P = read(out_P, b, before, T, t > 0, N * N, DTYPE)
        transition, AP, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, DTYPE)
        p = predicted_mean(transition, a, h0, f, b, t, T, N, DTYPE)
        observation = read(C, b, t, T, t >= 0, M * N, DTYPE)
        noise = symmetric(read(R, b, t, T, t >= 0, M * M, DTYPE), M)
        K, J, L, inverse, _ = gain(Pp, observation, noise, N, M)
        e = subtract(read(z, b, t, T, t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        h = add(h, arriving(to_f, b, t, T, inside, N, BLOCK, DTYPE), N)
        G = add(G, symmetric(arriving(to_P, b, t, T, inside, N * N, BLOCK, DTYPE), N), N * N)
        g = arriving(to_density, b, t, T, inside, 1, BLOCK, DTYPE)[0]

        v, at_z, u = mean_adjoint(h, g, e, K, observation, L, inverse, N, M)
        vv = outer(scale(g, v, M), v, M, M)
        U, at_R, at_C = covariance_adjoint(G, outer(h, v, N, M), vv, g, K, J, L, inverse, observation, N, M, BLOCK, DTYPE)
        u = add(u, arriving(to_p, b, t, T, inside, N, BLOCK, DTYPE), N)
        U = add(U, symmetric(arriving(to_Pp, b, t, T, inside, N * N, BLOCK, DTYPE), N), N * N)
        write(dz, b, t, T, inside, at_z, M)
        sum_R = collect(dR, sum_R, b, t, T, inside, at_R, M * M)
        if dC[0] is not None:
            at_C = subtract(product(at_C, Pp, M, N, N), outer(at_z, p, M, N), M * N)
            sum_C = collect(dC, sum_C, b, t, T, inside, at_C, M * N)
        if dA[0] is not None:
            at_A = add(scale(2.0, product(U, AP, N, N, N), N * N), outer(u, f, N, N), N * N)
            sum_A = collect(dA, sum_A, b, t, T, inside, at_A, N * N)
        sum_a = collect(da, sum_a, b, t, T, inside, chosen(t > 0, u, zeros(N, BLOCK, DTYPE), N), N)
        sum_Q = collect(dQ, sum_Q, b, t, T, inside, chosen(t > 0, U, zeros(N * N, BLOCK, DTYPE), N * N), N * N)
        h = chosen(t > 0, product(transpose(transition, N, N), u, N, N, 1), u, N)
        UA = product(U, transition, N, N, N)
        G = chosen(t > 0, lower_product(zeros(N * N, BLOCK, DTYPE), transpose(transition, N, N), UA, N, N), U, N * N)
    write(dh0, b, tl.program_id(0) * 0, T, inside, h, N)
    finish(dP0, G, b, T, inside, N * N)
    finish(dA, sum_A, b, T, inside, N * N)
    finish(da, sum_a, b, T, inside, N)
    finish(dQ, sum_Q, b, T, inside, N * N)
    finish(dC, sum_C, b, T, inside, M * N)
    finish(dR, sum_R, b, T, inside, M * M)
