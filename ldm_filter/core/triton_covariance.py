"""The recursion of covariances that all sequences share, and its adjoint, as GPU kernels: one program, on tiles, in float64.

A model that is constant in time comes to rest, by the rule of the compiled CPU kernels (:mod:`ldm_filter.core.kernels`): once no entry of
P^- has moved by more than 1e-14 of its scale sqrt(P_ii P_jj) in two steps on end, and it came there from 1e-7 within 160 steps. The steps
that follow repeat the last distinct one. The equations are in :mod:`ldm_filter.core.triton_step`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_tile_step import arriving, collect, covariance_adjoint, finish, gain, joseph, noise, predicted_cov
from ldm_filter.core.triton_tiles import dot, read_matrix, row_of, symmetric, write_matrix

__all__ = ["covariance_backward", "covariance_forward"]

REST = tl.constexpr(1e-14)
APPROACH = tl.constexpr(1e-7)
PATIENCE = tl.constexpr(160)


@triton.jit
def change_of(now, before, NP: tl.constexpr):
    """By how much of its scale the entry moved that moved most."""
    i, j = tl.arange(0, NP)[:, None], tl.arange(0, NP)[None, :]
    moved = tl.abs(now - before)
    variances = tl.where(i == j, now, 0.0)
    scale = tl.sqrt(tl.sum(variances, 1)[:, None] * tl.sum(variances, 0)[None, :])
    return tl.max(tl.max(tl.where(moved > 0.0, moved / tl.where(scale > 0.0, scale, 1e-300), 0.0), 1), 0)


@triton.jit(do_not_specialize=["T"])
def covariance_forward(
    A,
    Q,
    C,
    R,
    P0,
    out_Pp,
    out_P,
    out_K,
    out_W,
    state,
    T,
    CONSTANT: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    NP: tl.constexpr,
    MP: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """P^-, P, K and the inverse of L of the steps that differ; in ``state`` the first step without a factor, T if none, and their number."""
    b = tl.program_id(0)
    P, before = tl.full((NP, NP), 0.0, DTYPE), tl.full((NP, NP), 0.0, DTYPE)
    t, still, far, first = b * 0, b * 0, b * 0 - 1, b * 0 + T
    going = t < T
    while going:
        _, _, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, NP, DTYPE)
        observation = read_matrix(row_of(C, b, b, t, T, M * N), t >= 0, M, N, MP, NP, DTYPE)
        measured = noise(R, b, t, T, M, MP, DTYPE)
        K, J, W, positive = gain(Pp, observation, measured, N, M, NP, MP, DTYPE)
        P = joseph(Pp, K, J, measured)
        if out_Pp[0] is not None:
            write_matrix(row_of(out_Pp, b, b, t, T, N * N), Pp, N, N, NP, NP)
        write_matrix(row_of(out_P, b, b, t, T, N * N), P, N, N, NP, NP)
        write_matrix(row_of(out_K, b, b, t, T, N * M), K, N, M, NP, MP)
        write_matrix(row_of(out_W, b, b, t, T, M * M), W, M, M, MP, MP)
        first = tl.where(positive, first, t)
        rest = t < 0
        if CONSTANT:
            change = change_of(Pp, before, NP)
            far = tl.where((change <= APPROACH) | (t < 1), far, t)
            still = tl.where(change <= REST, still + 1, 0)
            rest = (still >= 2) & (far >= 0) & (t - far <= PATIENCE)
            before = Pp
        t = tl.where(rest, t, t + 1)
        going = (t < T) & positive & (rest == 0)
    tl.store(state, first)
    tl.store(state + 1, t)


@triton.jit(do_not_specialize=["distinct", "T"])
def covariance_backward(
    A,
    Q,
    C,
    R,
    P0,
    out_P,
    sum_hv,
    sum_vv,
    sum_g,
    to_Pp,
    to_P,
    dA,
    dQ,
    dC,
    dR,
    dP0,
    distinct,
    T,
    N: tl.constexpr,
    M: tl.constexpr,
    NP: tl.constexpr,
    MP: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of the model from those that arrive at the covariances and from the sums over the batch of h v', g v v' and g."""
    b = tl.program_id(0)
    G, sum_A, sum_Q = tl.full((NP, NP), 0.0, DTYPE), tl.full((NP, NP), 0.0, DTYPE), tl.full((NP, NP), 0.0, DTYPE)
    sum_C, sum_R = tl.full((MP, NP), 0.0, DTYPE), tl.full((MP, MP), 0.0, DTYPE)
    for step in range(distinct):
        t = tl.cast(distinct - 1 - step, tl.int32)
        P = read_matrix(row_of(out_P, b, b, tl.maximum(t - 1, 0), T, N * N), t > 0, N, N, NP, NP, DTYPE)
        transition, AP, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, NP, DTYPE)
        observation = read_matrix(row_of(C, b, b, t, T, M * N), t >= 0, M, N, MP, NP, DTYPE)
        K, J, W, _ = gain(Pp, observation, noise(R, b, t, T, M, MP, DTYPE), N, M, NP, MP, DTYPE)
        G += arriving(to_P, b, t, T, N, NP, DTYPE)
        hv = read_matrix(row_of(sum_hv, b, b, t, T, N * M), t >= 0, N, M, NP, MP, DTYPE)
        vv = symmetric(read_matrix(row_of(sum_vv, b, b, t, T, M * M), t >= 0, M, M, MP, MP, DTYPE))
        g = tl.load(row_of(sum_g, b, b, t, T, 1)).to(DTYPE)

        U, at_R, at_C = covariance_adjoint(G, hv, vv, g, K, J, W, observation)
        U += arriving(to_Pp, b, t, T, N, NP, DTYPE)
        sum_R = collect(dR, b, t, T, sum_R, at_R, M, M, MP, MP)
        if dC[0] is not None:
            sum_C = collect(dC, b, t, T, sum_C, dot(at_C, Pp), M, N, MP, NP)
        if dA[0] is not None:
            sum_A = collect(dA, b, t, T, sum_A, 2.0 * dot(U, AP), N, N, NP, NP)
        sum_Q = collect(dQ, b, t, T, sum_Q, tl.where(t > 0, U, 0.0), N, N, NP, NP)
        G = tl.where(t > 0, symmetric(dot(tl.trans(transition), dot(U, transition))), U)
    finish(dP0, b, T, G, N, N, NP, NP)
    finish(dA, b, T, sum_A, N, N, NP, NP)
    finish(dQ, b, T, sum_Q, N, N, NP, NP)
    finish(dC, b, T, sum_C, M, N, MP, NP)
    finish(dR, b, T, sum_R, M, M, MP, MP)
