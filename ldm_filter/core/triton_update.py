"""Prediction and update of one sequence in a thread's registers, measured channel by measured channel.

A unit lower triangular L with R = L D L' turns the channels into ones whose noises are independent, L^-1 z = L^-1 C h + noise of variance D.
Each is a number, so that there is no matrix of innovations to factor, and of P^- and P only the lower triangles are kept:

    s = c P c' + d    k = P c' / s    M = P - k (P c')'    f <- f + k (e - c f)
    w = d k - M c'    P <- M + x k' + k x'    x = w - (c w) k / 2

In exact numbers w is 0. What is left is what rounding left in M along c, and goes, as it does in Joseph's form (1 - k c) P (1 - k c)' + d k k'.
C P^- C' + R is positive definite where every s is positive.
"""

# ruff: noqa: RUF005, SIM108, SIM300 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_matrix import add, mirror, scale, subtract

__all__ = ["corrected", "dot", "part", "predicted", "raised", "times", "triangle", "unit_factor"]

CERTAIN = tl.constexpr(1e4)  # s / d up to which M is right in float64, and w need not be looked at


@triton.jit
def part(at, held, FIRST: tl.constexpr, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """COUNT entries from the FIRST on: of those ``held`` for each sequence or, shared, from memory each time: registers are scarcer."""
    out = ()
    for k in tl.static_range(COUNT):
        if len(at[0].shape) == 0:
            out = out + (tl.load(at[0] + FIRST + k).to(DTYPE),)
        else:
            out = out + (held[FIRST + k].to(DTYPE),)
    return out


@triton.jit
def dot(x, y, COUNT: tl.constexpr):
    """x'y."""
    s = x[0] * y[0]
    for k in tl.static_range(1, COUNT):
        s += x[k] * y[k]
    return s


@triton.jit
def times(P, x, N: tl.constexpr):
    """P x of the full (N, N) P."""
    out = ()
    for i in tl.static_range(N):
        s = P[i * N] * x[0]
        for k in tl.static_range(1, N):
            s += P[i * N + k] * x[k]
        out = out + (s,)
    return out


@triton.jit
def raised(P, x, y, N: tl.constexpr):
    """The lower triangle of P + x y', P a lower triangle."""
    out = ()
    for i in tl.static_range(N):
        for j in tl.static_range(i + 1):
            out = out + (P[i * (i + 1) // 2 + j] + x[i] * y[j],)
    return out


@triton.jit
def entry(at, held, I: tl.constexpr, J: tl.constexpr, N: tl.constexpr, DTYPE: tl.constexpr):
    """(I, J) of an (N, N) covariance: of the symmetric part where it is held, of the lower triangle where it is shared, which is symmetric."""
    if len(at[0].shape) == 0 or I == J:
        out = part(at, held, I * N + J, 1, DTYPE)[0]
    else:
        out = (0.5 * (held[I * N + J] + held[J * N + I])).to(DTYPE)
    return out


@triton.jit
def triangle(at, held, N: tl.constexpr, DTYPE: tl.constexpr):
    """The lower triangle of an (N, N) covariance."""
    out = ()
    for i in tl.static_range(N):
        for j in tl.static_range(i + 1):
            out = out + (entry(at, held, i, j, N, DTYPE),)
    return out


@triton.jit
def predicted(A, Q, a, held_A, held_Q, held_a, f, P, N: tl.constexpr, DTYPE: tl.constexpr):
    """A f + a and the lower triangle of A P A' + Q, P a lower triangle. Two rows at a time: an entry of A that is read serves both."""
    full = mirror(P, N)
    mean, cov = (), ()
    for i in tl.static_range(0, N, 2):
        row = part(A, held_A, i * N, N, DTYPE)
        mean = mean + (dot(row, f, N) + part(a, held_a, i, 1, DTYPE)[0],)
        first = times(full, row, N)
        second = first
        if i + 1 < N:
            row = part(A, held_A, i * N + N, N, DTYPE)
            mean = mean + (dot(row, f, N) + part(a, held_a, i + 1, 1, DTYPE)[0],)
            second = times(full, row, N)
        upper, lower = (), ()
        for j in tl.static_range(min(i + 2, N)):
            row = part(A, held_A, j * N, N, DTYPE)
            if j <= i:
                upper = upper + (entry(Q, held_Q, i, j, N, DTYPE) + dot(first, row, N),)
            if i + 1 < N:
                lower = lower + (entry(Q, held_Q, i + 1, j, N, DTYPE) + dot(second, row, N),)
        cov = cov + upper + lower
    return mean, cov


@triton.jit
def unit_factor(S, M: tl.constexpr):
    """S = L D L' of a lower triangle S: L^-1 below its unit diagonal, row by row; D and its reciprocals, 0 where rounding leaves nothing of D."""
    L, inverse, D, reciprocals = (), (), (), ()
    for i in tl.static_range(M):
        d = S[i * (i + 1) // 2 + i]
        row, scaled = (), ()
        for j in tl.static_range(i):
            s = S[i * (i + 1) // 2 + j]
            for k in tl.static_range(j):
                s -= row[k] * L[j * (j - 1) // 2 + k]
            row = row + (s,)
            scaled = scaled + (s * reciprocals[j],)
            d -= s * scaled[j]
        for j in tl.static_range(i):
            s = scaled[j]
            for k in tl.static_range(j + 1, i):
                s += scaled[k] * inverse[k * (k - 1) // 2 + j]
            inverse = inverse + (-s,)
        L = L + scaled
        D = D + (d,)
        kept = tl.abs(d) > 1e-15 * S[i * (i + 1) // 2 + i]
        reciprocals = reciprocals + (tl.where(kept, 1.0 / tl.where(kept, d, 1.0), 0.0),)
    return inverse, D, reciprocals


@triton.jit
def channel(C, held_C, e, inverse, J: tl.constexpr, N: tl.constexpr, DTYPE: tl.constexpr):
    """The J-th row of L^-1 C and of L^-1 e."""
    c, rest = part(C, held_C, J * N, N, DTYPE), e[J]
    for i in tl.static_range(J):
        factor = inverse[J * (J - 1) // 2 + i]
        rest += factor * e[i]
        c = add(c, scale(factor, part(C, held_C, i * N, N, DTYPE), N), N)
    return c, rest


@triton.jit
def corrected(C, held_C, R, held_R, e, f, P, N: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr):
    """f and the lower triangle P after the measurements e, e' S^-1 e + log det S, and whether S is positive definite."""
    inverse, D, _ = unit_factor(triangle(R, held_R, M, DTYPE), M)
    density, pivots, positive = tl.zeros_like(f[0]), tl.zeros_like(f[0]) + 1.0, tl.zeros_like(f[0]) + 1.0
    for j in tl.static_range(M):
        c, rest = channel(C, held_C, e, inverse, j, N, DTYPE)
        u = times(mirror(P, N), c, N)
        s = D[j] + dot(c, u, N)
        positive = tl.where(s > 0.0, positive, 0.0)
        s = tl.where(s > 0.0, s, 1.0)
        reciprocal = 1.0 / s
        rest -= dot(c, f, N)
        density += rest * rest * reciprocal
        pivots *= s
        if j % 4 == 3 or j == M - 1:  # a logarithm takes as long as fifty products; a product of four is in range
            density += tl.log(pivots)
            pivots = tl.zeros_like(f[0]) + 1.0
        K = scale(reciprocal, u, N)
        f, P = add(f, scale(rest, K, N), N), raised(P, K, scale(-1.0, u, N), N)
        if DTYPE == tl.float32 or tl.max(tl.where(s > CERTAIN * D[j], 1, 0), 0) > 0:
            w = subtract(scale(D[j], K, N), times(mirror(P, N), c, N), N)
            w = subtract(w, scale(0.5 * dot(c, w, N), K, N), N)
            P = raised(raised(P, w, K, N), K, w, N)
    return f, P, density, positive > 0.0
