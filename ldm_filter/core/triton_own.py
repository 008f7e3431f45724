"""The Kalman filter and its adjoint as a GPU kernel, where each sequence has covariances of its own.

One sequence for each thread, its state in registers, time inside the kernel: every input is read once and every output
written once. What all sequences share is read by all threads at once. The equations are in :mod:`ldm_filter.core.triton_step`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_matrix import (
    add,
    lower_product,
    outer,
    product,
    scale,
    solve_lower,
    solve_upper,
    subtract,
    symmetric,
    transpose,
    zeros,
)
from ldm_filter.core.triton_memory import moved, places, read, write
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
    still,
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
    fields = (A, Q, C, R, P0, a, z, h0, seen, out_p, out_Pp, out_f, out_P, density)
    counts: tl.constexpr = (N * N, N * N, M * N, M * M, N * N, N, M, N, 1, N, N * N, N, N * N, 1)
    at = places(fields, counts, b, tl.program_id(0) * 0, 0, T, 14)
    f, P = zeros(N, BLOCK, DTYPE), zeros(N * N, BLOCK, DTYPE)
    first = tl.full((BLOCK,), 0, tl.int32) + T
    for step in range(T):
        t = tl.cast(step, tl.int32)
        transition, _, Pp = predicted_cov(at[0], at[1], at[4], P, t, N, DTYPE)
        p = predicted_mean(transition, at[5], at[7], f, t, N, DTYPE)
        observation = read(at[2], t >= 0, M * N, DTYPE)
        noise = symmetric(read(at[3], t >= 0, M * M, DTYPE), M)
        K, J, L, inverse, positive = gain(Pp, observation, noise, N, M)
        first = tl.where(positive | (first < T), first, t)
        e = subtract(read(at[6], t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        f = add(p, product(K, e, N, M, 1), N)
        P = joseph(Pp, K, J, noise, N, M)
        if out_p[0] is not None:
            write(at[9], inside, p, N)
            write(at[10], inside, lifted(Pp, LIFT, N), N * N)
        write(at[11], inside, f, N)
        write(at[12], inside, lifted(P, LIFT, N), N * N)
        write(at[13], inside, (log_density(e, L, inverse, read(at[8], t >= 0, 1, DTYPE)[0], M),), 1)
        at = moved(at, fields, counts, 1, still, 14)
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
    still,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of all inputs (those of shared ones summed over the block) from those that arrive at the outputs."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    inputs = (A, Q, C, R, P0, a, z, h0, to_p, to_Pp, to_f, to_P, to_density)
    counts: tl.constexpr = (N * N, N * N, M * N, M * M, N * N, N, M, N, N, N * N, N, N * N, 1)
    grads, earlier = (dA, dQ, dC, dR, dP0, da, dz, dh0), (out_f, out_P)
    at = places(inputs, counts, b, tl.program_id(0) * 0, T - 1, T, 13)
    to = places(grads, counts, b, tl.program_id(0), T - 1, T, 8)
    before = places(earlier, (N, N * N), b, tl.program_id(0) * 0, T - 2, T, 2)
    h, G = zeros(N, BLOCK, DTYPE), zeros(N * N, BLOCK, DTYPE)
    sum_A, sum_Q, sum_C = zeros(N * N, BLOCK, DTYPE), zeros(N * N, BLOCK, DTYPE), zeros(M * N, BLOCK, DTYPE)
    sum_R, sum_a = zeros(M * M, BLOCK, DTYPE), zeros(N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        f = read(before[0], t > 0, N, DTYPE)
        P = read(before[1], t > 0, N * N, DTYPE)
        transition, AP, Pp = predicted_cov(at[0], at[1], at[4], P, t, N, DTYPE)
        p = predicted_mean(transition, at[5], at[7], f, t, N, DTYPE)
        observation = read(at[2], t >= 0, M * N, DTYPE)
        noise = symmetric(read(at[3], t >= 0, M * M, DTYPE), M)
        K, J, L, inverse, _ = gain(Pp, observation, noise, N, M)
        e = subtract(read(at[6], t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        h = add(h, arriving(to_f, at[10], inside, N, BLOCK, DTYPE), N)
        G = add(G, symmetric(arriving(to_P, at[11], inside, N * N, BLOCK, DTYPE), N), N * N)
        g = arriving(to_density, at[12], inside, 1, BLOCK, DTYPE)[0]

        v = solve_upper(L, inverse, solve_lower(L, inverse, e, M, 1), M, 1)
        at_z, u = mean_adjoint(h, g, v, K, observation, N, M)
        vv = outer(scale(g, v, M), v, M, M)
        U, at_R, at_C = covariance_adjoint(G, outer(h, v, N, M), vv, g, K, J, L, inverse, observation, N, M, BLOCK, DTYPE)
        u = add(u, arriving(to_p, at[8], inside, N, BLOCK, DTYPE), N)
        U = add(U, symmetric(arriving(to_Pp, at[9], inside, N * N, BLOCK, DTYPE), N), N * N)
        write(to[6], inside, at_z, M)
        sum_R = collect(dR, to[3], sum_R, inside, at_R, M * M)
        if dC[0] is not None:
            at_C = subtract(product(at_C, Pp, M, N, N), outer(at_z, p, M, N), M * N)
            sum_C = collect(dC, to[2], sum_C, inside, at_C, M * N)
        if dA[0] is not None:
            at_A = add(scale(2.0, product(U, AP, N, N, N), N * N), outer(u, f, N, N), N * N)
            sum_A = collect(dA, to[0], sum_A, inside, at_A, N * N)
        sum_a = collect(da, to[5], sum_a, inside, chosen(t > 0, u, zeros(N, BLOCK, DTYPE), N), N)
        sum_Q = collect(dQ, to[1], sum_Q, inside, chosen(t > 0, U, zeros(N * N, BLOCK, DTYPE), N * N), N * N)
        h = chosen(t > 0, product(transpose(transition, N, N), u, N, N, 1), u, N)
        UA = product(U, transition, N, N, N)
        G = chosen(t > 0, lower_product(zeros(N * N, BLOCK, DTYPE), transpose(transition, N, N), UA, N, N), U, N * N)
        if t < 1:
            write(to[7], inside, h, N)
            finish(dP0, to[4], G, inside, N * N)
            finish(dA, to[0], sum_A, inside, N * N)
            finish(da, to[5], sum_a, inside, N)
            finish(dQ, to[1], sum_Q, inside, N * N)
            finish(dC, to[2], sum_C, inside, M * N)
            finish(dR, to[3], sum_R, inside, M * M)
        at = moved(at, inputs, counts, -1, still, 13)
        to = moved(to, grads, counts, -1, still, 8)
        before = moved(before, earlier, (N, N * N), -1, still, 2)
