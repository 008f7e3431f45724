"""The means of all sequences under the gains that they share, and their adjoint, as GPU kernels for states of more than a few numbers.

The means of a block of sequences are the rows of a tile, so that every step is a few products of matrices. The arguments are those of
:mod:`ldm_filter.core.triton_means`, the equations those of :mod:`ldm_filter.core.triton_step`.
"""

# ruff: noqa: SIM108 - what does not apply is not compiled

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_step import LOG_2PI
from ldm_filter.core.triton_tile_step import collect, finish
from ldm_filter.core.triton_tiles import dot, log_diagonal, read_matrix, read_rows, row_of, write_matrix, write_rows

__all__ = ["tile_mean_backward", "tile_mean_forward"]


@triton.jit
def shared_matrix(field, zero, t, on, I: tl.constexpr, J: tl.constexpr, IP: tl.constexpr, JP: tl.constexpr, DTYPE: tl.constexpr):
    """A matrix that all sequences share."""
    return read_matrix(row_of(field, zero, zero, t, zero, I * J), on, I, J, IP, JP, DTYPE)


@triton.jit
def predicted_means(transition, a, h0, f, b, zero, t, T, inside, N: tl.constexpr, NP: tl.constexpr, DTYPE: tl.constexpr):
    """p; the transition and f are zero at t = 0."""
    start = read_rows(h0, b, zero, t, T, inside & (t < 1), N, NP, DTYPE)
    return dot(f, tl.trans(transition)) + read_rows(a, b, zero, t, T, inside & (t > 0), N, NP, DTYPE) + start


@triton.jit
def arriving_rows(field, b, zero, t, T, inside, N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """A gradient that arrives at means, zeros where none does."""
    if field[0] is None:
        out = tl.full((BLOCK, NP), 0.0, DTYPE)
    else:
        out = read_rows(field, b, zero, t, T, inside, N, NP, DTYPE)
    return out


@triton.jit(do_not_specialize=["batch", "T"])
def tile_mean_forward(
    A,
    C,
    a,
    z,
    h0,
    K,
    W,
    seen,
    out_p,
    out_f,
    density,
    state,
    batch,
    T,
    N: tl.constexpr,
    M: tl.constexpr,
    NP: tl.constexpr,
    MP: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Filtered (and predicted, where there is a place for them) means and log-densities."""
    zero = tl.program_id(0) * 0
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    last = tl.load(state + 1) - 1
    f = tl.full((BLOCK, NP), 0.0, DTYPE)
    for step in range(T):
        t = tl.cast(step, tl.int32)
        planned = tl.minimum(t, last)
        p = predicted_means(shared_matrix(A, zero, t, t > 0, N, N, NP, NP, DTYPE), a, h0, f, b, zero, t, T, inside, N, NP, DTYPE)
        observation = shared_matrix(C, zero, t, t >= 0, M, N, MP, NP, DTYPE)
        e = read_rows(z, b, zero, t, T, inside, M, MP, DTYPE) - dot(p, tl.trans(observation))
        f = p + dot(e, tl.trans(shared_matrix(K, zero, planned, t >= 0, N, M, NP, MP, DTYPE)))
        if out_p[0] is not None:
            write_rows(out_p, b, zero, t, T, inside, p, N, NP)
        write_rows(out_f, b, zero, t, T, inside, f, N, NP)
        whitening = shared_matrix(W, zero, planned, t >= 0, M, M, MP, MP, DTYPE)
        w = dot(e, tl.trans(whitening))
        count = tl.load(row_of(seen, zero, zero, t, T, 1)).to(DTYPE)
        at = row_of(density, b, zero, t, T, 1)
        value = log_diagonal(whitening, M, MP) - 0.5 * (tl.sum(w * w, 1) + count * LOG_2PI)
        tl.store(at, value.to(at.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "T"])
def tile_mean_backward(
    A,
    C,
    a,
    z,
    h0,
    K,
    W,
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
    state,
    batch,
    T,
    N: tl.constexpr,
    M: tl.constexpr,
    NP: tl.constexpr,
    MP: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of the data and of what moves it, and the sums over the block that the covariances need."""
    program = tl.program_id(0)
    zero = program * 0
    b = program * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    distinct = tl.load(state + 1)
    h, sum_a = tl.full((BLOCK, NP), 0.0, DTYPE), tl.full((BLOCK, NP), 0.0, DTYPE)
    sum_A, sum_C = tl.full((NP, NP), 0.0, DTYPE), tl.full((MP, NP), 0.0, DTYPE)
    hv, vv, gs = tl.full((NP, MP), 0.0, DTYPE), tl.full((MP, MP), 0.0, DTYPE), tl.full((BLOCK,), 0.0, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        planned = tl.minimum(t, distinct - 1)
        transition = shared_matrix(A, zero, t, t > 0, N, N, NP, NP, DTYPE)
        observation = shared_matrix(C, zero, t, t >= 0, M, N, MP, NP, DTYPE)
        whitening = shared_matrix(W, zero, planned, t >= 0, M, M, MP, MP, DTYPE)
        f = read_rows(out_f, b, zero, tl.maximum(t - 1, 0), T, inside & (t > 0), N, NP, DTYPE)
        p = predicted_means(transition, a, h0, f, b, zero, t, T, inside, N, NP, DTYPE)
        v = dot(dot(read_rows(z, b, zero, t, T, inside, M, MP, DTYPE) - dot(p, tl.trans(observation)), tl.trans(whitening)), whitening)
        h += arriving_rows(to_f, b, zero, t, T, inside, N, NP, BLOCK, DTYPE)
        g = tl.full((BLOCK,), 0.0, DTYPE)
        if to_density[0] is not None:
            g += tl.load(row_of(to_density, b, zero, t, T, 1), mask=inside, other=0.0).to(DTYPE)

        gv = g[:, None] * v
        at_z = dot(h, shared_matrix(K, zero, planned, t >= 0, N, M, NP, MP, DTYPE)) - gv
        u = h - dot(at_z, observation) + arriving_rows(to_p, b, zero, t, T, inside, N, NP, BLOCK, DTYPE)
        hv, vv, gs = hv + dot(tl.trans(h), v), vv + dot(tl.trans(gv), v), gs + g
        if t < distinct:
            write_matrix(row_of(sum_hv, program, program, t, distinct, N * M), hv, N, M, NP, MP)
            write_matrix(row_of(sum_vv, program, program, t, distinct, M * M), vv, M, M, MP, MP)
            at = row_of(sum_g, program, program, t, distinct, 1)
            tl.store(at, tl.sum(gs, 0).to(at.dtype.element_ty))
        hv, vv, gs = tl.where(t < distinct, 0.0, hv), tl.where(t < distinct, 0.0, vv), tl.where(t < distinct, 0.0, gs)
        write_rows(dz, b, zero, t, T, inside, at_z, M, MP)
        if dC[0] is not None:
            sum_C = collect(dC, program, t, T, sum_C, -dot(tl.trans(at_z), p), M, N, MP, NP)
        if dA[0] is not None:
            sum_A = collect(dA, program, t, T, sum_A, dot(tl.trans(u), f), N, N, NP, NP)
        at_a = tl.where(t > 0, u, 0.0)
        if da[0] is not None:
            if da[2] is None:
                sum_a += at_a
            else:
                write_rows(da, b, program, t, T, inside, at_a, N, NP)
        h = tl.where(t > 0, dot(u, transition), u)
    write_rows(dh0, b, zero, 0, T, inside, h, N, NP)
    finish(dA, program, T, sum_A, N, N, NP, NP)
    finish(dC, program, T, sum_C, M, N, MP, NP)
    if da[0] is not None and da[2] is None:
        write_rows(da, b, program, 0, T, inside, sum_a, N, NP)
