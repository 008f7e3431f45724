"""The Kalman filter and its adjoint as a GPU kernel, where each sequence has covariances of its own.

One sequence for each thread, its state in registers, time inside the kernel: every input is read once and every output written once, and a
measurement is fetched a step ahead. What all sequences share is read by all threads at once, when it is needed; its covariances must be symmetric.
The equations are in :mod:`ldm_filter.core.triton_update`, :mod:`ldm_filter.core.triton_adjoint` and :mod:`ldm_filter.core.triton_step`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_adjoint import back_corrected, back_predicted, gains
from ldm_filter.core.triton_matrix import add, lower, mirror, symmetric, zeros
from ldm_filter.core.triton_memory import columns, fetched, held, moved, places, read, write
from ldm_filter.core.triton_step import LOG_2PI, arriving, collect, collect_symmetric, finish, lifted
from ldm_filter.core.triton_update import corrected, predicted, triangle

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
    zero = tl.program_id(0) * 0
    now, outputs = (C, seen), (out_p, out_Pp, out_f, out_P, density)
    counts: tl.constexpr = (M * N, 1)
    widths: tl.constexpr = (N, N * N, N, N * N, 1)
    coming = (z, R, A, Q, a)
    sizes: tl.constexpr = (M, M * M, N * N, N * N, N)
    at, to = places(now, counts, b, zero, 0, T, 2, True), places(outputs, widths, b, zero, 0, T, 5, True)
    start = places((z, R, P0, h0), (M, M * M, N * N, N), b, zero, 0, T, 4, True)
    ahead = places(coming, sizes, b, zero, tl.minimum(1, T - 1), T, 5, True)
    next_z, next_R = fetched(start[0], M), fetched(start[1], M * M)
    TRIANGLE: tl.constexpr = N * (N + 1) // 2
    P = add(triangle(start[2], held(start[2], N * N), N, DTYPE), zeros(TRIANGLE, BLOCK, DTYPE), TRIANGLE)
    f = read(start[3], None, N, DTYPE)
    first = tl.full((BLOCK,), 0, tl.int32) + T
    R_now = start[1]
    for step in range(T):
        t = tl.cast(step, tl.int32)
        if out_p[0] is not None:
            write(to[0], inside, f, N)
            write(to[1], inside, lifted(mirror(P, N), LIFT, N), N * N)
        e = columns(next_z, DTYPE)
        f, P, total, positive = corrected(at[0], held(at[0], M * N), R_now, columns(next_R, R_now[0].dtype.scalar.element_ty), e, f, P, N, M, DTYPE)
        first = tl.where(positive | (first < T), first, t)
        write(to[2], inside, f, N)
        write(to[3], inside, lifted(mirror(P, N), LIFT, N), N * N)
        write(to[4], inside, (-0.5 * (total + read(at[1], None, 1, DTYPE)[0] * LOG_2PI),), 1)
        next_z, next_R, R_now = fetched(ahead[0], M), fetched(ahead[1], M * M), ahead[1]
        f, P = predicted(ahead[2], ahead[3], ahead[4], held(ahead[2], N * N), held(ahead[3], N * N), held(ahead[4], N), f, P, N, DTYPE)
        at, to = moved(at, now, counts, 1, still, 2), moved(to, outputs, widths, 1, still, 5)
        ahead = moved(ahead, coming, sizes, tl.where(t + 2 < T, 1, 0), still, 5)
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
    INNER: tl.constexpr,
):
    """The gradients of all inputs (those of shared ones summed over the block) from those that arrive at the outputs, all but K and v in DTYPE."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    zero = tl.program_id(0) * 0
    inputs = (A, Q, C, R, a, z, to_p, to_Pp, to_f, to_P, to_density)
    counts: tl.constexpr = (N * N, N * N, M * N, M * M, N, M, N, N * N, N, N * N, 1)
    grads, earlier = (dA, dQ, dC, dR, da, dz), (out_f, out_P)
    sizes: tl.constexpr = (N * N, N * N, M * N, M * M, N, M)
    at = places(inputs, counts, b, zero, T - 1, T, 11, True)
    to = places(grads, sizes, b, tl.program_id(0), T - 1, T, 6, True)
    before = places(earlier, (N, N * N), b, zero, tl.maximum(T - 2, 0), T, 2, True)
    start, end = places((P0, h0), (N * N, N), b, zero, 0, T, 2, True), places((dP0, dh0), (N * N, N), b, tl.program_id(0), 0, T, 2, True)
    TRIANGLE: tl.constexpr = N * (N + 1) // 2
    none, nothing = zeros(N, BLOCK, DTYPE), zeros(TRIANGLE, BLOCK, DTYPE)
    h, G, sum_a, sum_Q = none, nothing, none, nothing
    sum_A, sum_C, sum_R = zeros(N * N, BLOCK, DTYPE), zeros(M * N, BLOCK, DTYPE), zeros(M * M, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        f, P = read(before[0], None, N, DTYPE), lower(read(before[1], None, N * N, DTYPE), N)
        held_A = held(at[0], N * N)
        if t > 0:
            p, Pp = predicted(at[0], at[1], at[4], held_A, held(at[1], N * N), held(at[4], N), f, P, N, DTYPE)
        else:
            p, Pp = add(read(start[1], None, N, DTYPE), none, N), add(triangle(start[0], held(start[0], N * N), N, DTYPE), nothing, TRIANGLE)
        inverse, reciprocals, K, C_now, v = gains(at[2], at[3], read(at[5], None, M, INNER), p, Pp, N, M, DTYPE, INNER)
        h = add(h, arriving(to_f, at[8], inside, N, BLOCK, DTYPE), N)
        G = add(G, lower(symmetric(arriving(to_P, at[9], inside, N * N, BLOCK, DTYPE), N), N), TRIANGLE)
        g = arriving(to_density, at[10], inside, 1, BLOCK, DTYPE)[0]
        u, U, at_z, at_R, at_C = back_corrected(G, h, g, p, Pp, inverse, reciprocals, K, C_now, v, dC[0] is not None, N, M)
        u = add(u, arriving(to_p, at[6], inside, N, BLOCK, DTYPE), N)
        U = add(U, lower(symmetric(arriving(to_Pp, at[7], inside, N * N, BLOCK, DTYPE), N), N), TRIANGLE)
        write(to[5], inside, at_z, M)
        sum_R, sum_C = collect(dR, to[3], sum_R, inside, at_R, M * M), collect(dC, to[2], sum_C, inside, at_C, M * N)
        if t > 0:
            h, G, at_A = back_predicted(at[0], held_A, u, U, f, P, sum_A, dA[0] is not None, N, DTYPE)
            sum_a, sum_Q = collect(da, to[4], sum_a, inside, u, N), collect_symmetric(dQ, to[1], sum_Q, inside, U, N)
            if dA[0] is not None:
                if dA[2] is None:
                    sum_A = at_A
                else:
                    write(to[0], inside, at_A, N * N)
        else:
            h, G = u, U
            write(end[1], inside, u, N)
            if dP0[0] is not None:
                write(end[0], inside, mirror(U, N), N * N)
            if dA[0] is not None:  # zeros where each step has a gradient of its own, as the first has none
                write(to[0], inside, sum_A, N * N)
            if dQ[0] is not None:
                write(to[1], inside, mirror(sum_Q, N), N * N)
            if da[0] is not None:
                write(to[4], inside, sum_a, N)
            finish(dC, to[2], sum_C, inside, M * N)
            finish(dR, to[3], sum_R, inside, M * M)
        at, to = moved(at, inputs, counts, -1, still, 11), moved(to, grads, sizes, -1, still, 6)
        before = moved(before, earlier, (N, N * N), tl.where(t > 1, -1, 0), still, 2)
        start, end = moved(start, (P0, h0), (N * N, N), 0, still, 2), moved(end, (dP0, dh0), (N * N, N), 0, still, 2)
