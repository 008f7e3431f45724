"""The means of all sequences under the gains that they share, and their adjoint, as GPU kernels for small states.

One sequence for each thread, its means in registers. Gains and factors come from :mod:`ldm_filter.core.triton_covariance`, a row for each of
the ``distinct`` steps; the steps after them repeat the last. Backwards the sums over the batch of h v', g v v' and g are all that the
covariances need of the data, and those of the repeated steps collect at the last distinct one. The equations are in
:mod:`ldm_filter.core.triton_step`.
"""

# ruff: noqa: RUF005 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_matrix import add, outer, product, scale, subtract, transpose, zeros
from ldm_filter.core.triton_memory import moved, places, read, write
from ldm_filter.core.triton_step import LOG_2PI, arriving, chosen, collect, finish, mean_adjoint, predicted_mean

__all__ = ["mean_backward", "mean_forward"]


@triton.jit
def whitened(W, e, M: tl.constexpr):
    """w = L^-1 e; the upper triangle of W is zero."""
    out = ()
    for i in tl.static_range(M):
        s = W[i * M] * e[0]
        for j in tl.static_range(1, i + 1):
            s += W[i * M + j] * e[j]
        out = out + (s,)
    return out


@triton.jit
def whitened_twice(W, w, M: tl.constexpr):
    """v = L'^-1 w."""
    out = ()
    for j in tl.static_range(M):
        s = W[j * M + j] * w[j]
        for i in tl.static_range(j + 1, M):
            s += W[i * M + j] * w[i]
        out = out + (s,)
    return out


@triton.jit
def density_of(w, W, seen, M: tl.constexpr):
    """log N(e; 0, L L') of the seen channels."""
    total = seen * LOG_2PI
    for i in tl.static_range(M):
        total += w[i] * w[i] - 2.0 * tl.log(W[i * M + i])
    return -0.5 * total


@triton.jit
def mean_forward(
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
    still,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Filtered (and predicted, where there is a place for them) means and log-densities."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    fields = (A, C, a, z, h0, seen, out_p, out_f, density)
    counts: tl.constexpr = (N * N, M * N, N, M, N, 1, N, N, 1)
    at = places(fields, counts, b, tl.program_id(0) * 0, 0, T, 9)
    planned = places((K, W), (N * M, M * M), b, tl.program_id(0) * 0, 0, T, 2)
    distinct = tl.load(state + 1)
    f = zeros(N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(step, tl.int32)
        p = predicted_mean(read(at[0], t > 0, N * N, DTYPE), at[2], at[4], f, t, N, DTYPE)
        e = subtract(read(at[3], t >= 0, M, DTYPE), product(read(at[1], t >= 0, M * N, DTYPE), p, M, N, 1), M)
        f = add(p, product(read(planned[0], t >= 0, N * M, DTYPE), e, N, M, 1), N)
        if out_p[0] is not None:
            write(at[6], inside, p, N)
        write(at[7], inside, f, N)
        whitening = read(planned[1], t >= 0, M * M, DTYPE)
        write(at[8], inside, (density_of(whitened(whitening, e, M), whitening, read(at[5], t >= 0, 1, DTYPE)[0], M),), 1)
        at = moved(at, fields, counts, 1, still, 9)
        planned = moved(planned, (K, W), (N * M, M * M), tl.where(t + 1 < distinct, 1, 0), still, 2)


@triton.jit
def mean_backward(
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
    inputs = (A, C, a, z, h0, to_p, to_f, to_density)
    counts: tl.constexpr = (N * N, M * N, N, M, N, N, N, 1)
    grads = (dA, dC, da, dz, dh0)
    sizes: tl.constexpr = (N * N, M * N, N, M, N)
    distinct = tl.load(state + 1)
    at = places(inputs, counts, b, tl.program_id(0) * 0, T - 1, T, 8)
    to = places(grads, sizes, b, tl.program_id(0), T - 1, T, 5)
    planned = places((K, W), (N * M, M * M), b, tl.program_id(0) * 0, distinct - 1, T, 2)
    sums = places((sum_hv, sum_vv, sum_g), (N * M, M * M, 1), b, tl.program_id(0), distinct - 1, distinct, 3)
    before = places((out_f,), (N,), b, tl.program_id(0) * 0, T - 2, T, 1)
    h, sum_a = zeros(N, BLOCK, DTYPE), zeros(N, BLOCK, DTYPE)
    sum_A, sum_C = zeros(N * N, BLOCK, DTYPE), zeros(M * N, BLOCK, DTYPE)
    hv, vv, gs = zeros(N * M, BLOCK, DTYPE), zeros(M * M, BLOCK, DTYPE), zeros(1, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        transition = read(at[0], t > 0, N * N, DTYPE)
        observation = read(at[1], t >= 0, M * N, DTYPE)
        whitening = read(planned[1], t >= 0, M * M, DTYPE)
        f = read(before[0], t > 0, N, DTYPE)
        p = predicted_mean(transition, at[2], at[4], f, t, N, DTYPE)
        e = subtract(read(at[3], t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        h = add(h, arriving(to_f, at[6], inside, N, BLOCK, DTYPE), N)
        g = arriving(to_density, at[7], inside, 1, BLOCK, DTYPE)[0]

        v = whitened_twice(whitening, whitened(whitening, e, M), M)
        at_z, u = mean_adjoint(h, g, v, read(planned[0], t >= 0, N * M, DTYPE), observation, N, M)
        hv, vv, gs = add(hv, outer(h, v, N, M), N * M), add(vv, outer(scale(g, v, M), v, M, M), M * M), add(gs, (g,), 1)
        if t < distinct:
            write(sums[0], inside, hv, N * M)
            write(sums[1], inside, vv, M * M)
            write(sums[2], inside, gs, 1)
        hv, vv = chosen(t < distinct, zeros(N * M, BLOCK, DTYPE), hv, N * M), chosen(t < distinct, zeros(M * M, BLOCK, DTYPE), vv, M * M)
        gs = chosen(t < distinct, zeros(1, BLOCK, DTYPE), gs, 1)
        u = add(u, arriving(to_p, at[5], inside, N, BLOCK, DTYPE), N)
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
        at = moved(at, inputs, counts, -1, still, 8)
        to = moved(to, grads, sizes, -1, still, 5)
        planned = moved(planned, (K, W), (N * M, M * M), tl.where(t < distinct, -1, 0), still, 2)
        sums = moved(sums, (sum_hv, sum_vv, sum_g), (N * M, M * M, 1), tl.where(t < distinct, -1, 0), still, 3)
        before = moved(before, (out_f,), (N,), -1, still, 1)
