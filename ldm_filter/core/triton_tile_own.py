"""The Kalman filter and its adjoint as a GPU kernel, where each sequence has covariances of its own and more than a few states.

One sequence for each program, its matrices as tiles over the program's threads, time inside the kernel. The arguments are those of
:mod:`ldm_filter.core.triton_own`, the equations those of :mod:`ldm_filter.core.triton_step`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_step import LOG_2PI
from ldm_filter.core.triton_tile_step import arriving, collect, covariance_adjoint, finish, gain, joseph, noise, predicted_cov
from ldm_filter.core.triton_tiles import (
    dot,
    eye,
    log_diagonal,
    outer,
    read_matrix,
    read_vector,
    row_of,
    symmetric,
    times,
    transposed_times,
    write_matrix,
    write_vector,
)

__all__ = ["tile_filter_backward", "tile_filter_forward"]


@triton.jit
def predicted_mean(transition, a, h0, f, b, t, T, N: tl.constexpr, NP: tl.constexpr, DTYPE: tl.constexpr):
    """p; the transition and f are zero at t = 0."""
    offset = read_vector(row_of(a, b, 0 * b, t, T, N), t > 0, N, NP, DTYPE)
    return times(transition, f) + offset + read_vector(row_of(h0, b, 0 * b, t, T, N), t < 1, N, NP, DTYPE)


@triton.jit
def innovation(z, C, p, b, t, T, M: tl.constexpr, MP: tl.constexpr, DTYPE: tl.constexpr):
    """e."""
    return read_vector(row_of(z, b, 0 * b, t, T, M), t >= 0, M, MP, DTYPE) - times(C, p)


@triton.jit(do_not_specialize=["T"])
def tile_filter_forward(
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
    T,
    LIFT: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    NP: tl.constexpr,
    MP: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Filtered (and predicted, where there is a place for them) means and covariances, log-densities, the first step without a factor."""
    b = tl.program_id(0)
    f, P = tl.full((NP,), 0.0, DTYPE), tl.full((NP, NP), 0.0, DTYPE)
    lift = 1.0 + (LIFT - 1.0) * eye(N, NP, DTYPE)
    first = b * 0 + T
    for step in range(T):
        t = tl.cast(step, tl.int32)
        transition, _, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, NP, DTYPE)
        p = predicted_mean(transition, a, h0, f, b, t, T, N, NP, DTYPE)
        observation = read_matrix(row_of(C, b, 0 * b, t, T, M * N), t >= 0, M, N, MP, NP, DTYPE)
        measured = noise(R, b, t, T, M, MP, DTYPE)
        K, J, W, positive = gain(Pp, observation, measured, N, M, NP, MP, DTYPE)
        first = tl.where(positive | (first < T), first, t)
        e = innovation(z, observation, p, b, t, T, M, MP, DTYPE)
        f = p + times(K, e)
        P = joseph(Pp, K, J, measured)
        if out_p[0] is not None:
            write_vector(row_of(out_p, b, b, t, T, N), p, N, NP)
            write_matrix(row_of(out_Pp, b, b, t, T, N * N), Pp * lift, N, N, NP, NP)
        write_vector(row_of(out_f, b, b, t, T, N), f, N, NP)
        write_matrix(row_of(out_P, b, b, t, T, N * N), P * lift, N, N, NP, NP)
        w = times(W, e)
        count = tl.load(row_of(seen, b, 0 * b, t, T, 1)).to(DTYPE)
        at = row_of(density, b, b, t, T, 1)
        tl.store(at, (log_diagonal(W, M, MP) - 0.5 * (tl.sum(w * w, 0) + count * LOG_2PI)).to(at.dtype.element_ty))
    tl.store(failed + b, first)


@triton.jit(do_not_specialize=["T"])
def tile_filter_backward(
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
    T,
    N: tl.constexpr,
    M: tl.constexpr,
    NP: tl.constexpr,
    MP: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of all inputs (those of shared ones in a row for each sequence) from those that arrive at the outputs."""
    b = tl.program_id(0)
    h, G, sum_a = tl.full((NP,), 0.0, DTYPE), tl.full((NP, NP), 0.0, DTYPE), tl.full((NP,), 0.0, DTYPE)
    sum_A, sum_Q = tl.full((NP, NP), 0.0, DTYPE), tl.full((NP, NP), 0.0, DTYPE)
    sum_C, sum_R = tl.full((MP, NP), 0.0, DTYPE), tl.full((MP, MP), 0.0, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        f = read_vector(row_of(out_f, b, b, tl.maximum(t - 1, 0), T, N), t > 0, N, NP, DTYPE)
        P = read_matrix(row_of(out_P, b, b, tl.maximum(t - 1, 0), T, N * N), t > 0, N, N, NP, NP, DTYPE)
        transition, AP, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, NP, DTYPE)
        p = predicted_mean(transition, a, h0, f, b, t, T, N, NP, DTYPE)
        observation = read_matrix(row_of(C, b, 0 * b, t, T, M * N), t >= 0, M, N, MP, NP, DTYPE)
        K, J, W, _ = gain(Pp, observation, noise(R, b, t, T, M, MP, DTYPE), N, M, NP, MP, DTYPE)
        v = transposed_times(W, times(W, innovation(z, observation, p, b, t, T, M, MP, DTYPE)))
        if to_f[0] is not None:
            h += read_vector(row_of(to_f, b, b, t, T, N), t >= 0, N, NP, DTYPE)
        G += arriving(to_P, b, t, T, N, NP, DTYPE)
        g = tl.full((), 0.0, DTYPE)
        if to_density[0] is not None:
            g += tl.load(row_of(to_density, b, b, t, T, 1)).to(DTYPE)

        at_z = transposed_times(K, h) - g * v
        U, at_R, at_C = covariance_adjoint(G, outer(h, v), outer(g * v, v), g, K, J, W, observation)
        u = h - transposed_times(observation, at_z)
        if to_p[0] is not None:
            u += read_vector(row_of(to_p, b, b, t, T, N), t >= 0, N, NP, DTYPE)
        U += arriving(to_Pp, b, t, T, N, NP, DTYPE)
        write_vector(row_of(dz, b, b, t, T, M), at_z, M, MP)
        sum_R = collect(dR, b, t, T, sum_R, at_R, M, M, MP, MP)
        if dC[0] is not None:
            sum_C = collect(dC, b, t, T, sum_C, dot(at_C, Pp) - outer(at_z, p), M, N, MP, NP)
        if dA[0] is not None:
            sum_A = collect(dA, b, t, T, sum_A, 2.0 * dot(U, AP) + outer(u, f), N, N, NP, NP)
        sum_Q = collect(dQ, b, t, T, sum_Q, tl.where(t > 0, U, 0.0), N, N, NP, NP)
        at_a = tl.where(t > 0, u, 0.0)
        if da[0] is not None:
            if da[2] is None:
                sum_a += at_a
            else:
                write_vector(row_of(da, b, b, t, T, N), at_a, N, NP)
        h = tl.where(t > 0, transposed_times(transition, u), u)
        G = tl.where(t > 0, symmetric(dot(tl.trans(transition), dot(U, transition))), U)
    write_vector(row_of(dh0, b, b, 0, T, N), h, N, NP)
    finish(dP0, b, T, G, N, N, NP, NP)
    finish(dA, b, T, sum_A, N, N, NP, NP)
    finish(dQ, b, T, sum_Q, N, N, NP, NP)
    finish(dC, b, T, sum_C, M, N, MP, NP)
    finish(dR, b, T, sum_R, M, M, MP, MP)
    if da[0] is not None and da[2] is None:
        write_vector(row_of(da, b, b, 0, T, N), sum_a, N, NP)
