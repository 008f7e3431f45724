"""The adjoint of a step in a thread's registers, in the coordinates where the innovations are independent.

With S = C P^- C' + R = L D L', L unit lower triangular, channels L^-1 z have the matrix L^-1 C, the gain K L and a diagonal S. There the equations of
:mod:`ldm_filter.core.triton_step` need no factor, and are taken row by row so that few numbers are alive at once:

    y = G K    M = G - C' y' (which is J' G)    x = M K    dP^- = M - (x + g C' D^-1 / 2) C + sym(r (q + g r / 2)')    r = C' v    q = J' h
    dR = S0 + K' y - sym(K' h v')               dC = (v q' - dz r' - g D^-1 C - 2 x') P^- - dz p'

K and v come of differences where a measurement is much more certain than the prediction; the rest does not, and may be in another dtype.
"""

# ruff: noqa: RUF005 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_matrix import add, cast, mirror, outer, product, scale, subtract, transpose
from ldm_filter.core.triton_memory import held
from ldm_filter.core.triton_update import dot, part, raised, times, triangle, unit_factor

__all__ = ["back_corrected", "back_predicted", "gains"]


@triton.jit
def gains(C, R, e, p, P, N: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr, INNER: tl.constexpr):
    """L^-1 below its diagonal, the reciprocals of D, K' and C as rows for the channels, v, from z, p and P^-; computed in INNER."""
    CP, S = innovations(C, held(C, M * N), triangle(R, held(R, M * M), M, INNER), cast(P, INNER), N, M, INNER)
    inverse, _, reciprocals = unit_factor(S, M)
    observation = part(C, held(C, M * N), 0, M * N, INNER)
    e = decorrelated(inverse, subtract(e, product(observation, cast(p, INNER), M, N, 1), M), M, 1)
    CP, observation = decorrelated(inverse, CP, M, N), decorrelated(inverse, observation, M, N)
    K, v = (), ()
    for j in tl.static_range(M):
        K = K + scale(reciprocals[j], CP[j * N : j * N + N], N)
        v = v + (e[j] * reciprocals[j],)
    return cast(inverse, DTYPE), cast(reciprocals, DTYPE), cast(K, DTYPE), cast(observation, DTYPE), cast(v, DTYPE)


@triton.jit
def back_corrected(G, h, g, p, P, inverse, reciprocals, K, C, v, WANTED: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """dp, the lower triangle of dP^-, dz, dR and, where it is wanted, dC."""
    weights = scale(0.5 * g, reciprocals, M)
    kh = product(K, h, M, N, 1)
    at_z = subtract(kh, scale(g, v, M), M)
    r, q = product(v, C, 1, M, N), subtract(h, product(kh, C, 1, M, N), N)
    U, y, x = back_covariance(G, K, C, g, r, q, weights, N, M)
    u = subtract(h, product(at_z, C, 1, M, N), N)
    at_R = back_noise(K, y, v, g, weights, inverse, kh, N, M)
    at_C = ()
    if WANTED:
        for j in tl.static_range(M):
            for k in tl.static_range(N):
                at_C = at_C + (v[j] * q[k] - at_z[j] * r[k] - 2.0 * (weights[j] * C[j * N + k] + x[k * M + j]),)
        at_C = product(recorrelated(inverse, at_C, M, N), mirror(P, N), M, N, N)
    at_z = recorrelated(inverse, at_z, M, 1)
    if WANTED:
        at_C = subtract(at_C, outer(at_z, p, M, N), M * N)
    return u, U, at_z, at_R, at_C


@triton.jit
def back_predicted(A, held_A, u, U, f, P, sums, WANTED: tl.constexpr, N: tl.constexpr, DTYPE: tl.constexpr):
    """A' u, the lower triangle of A' U A, and ``sums`` with dA = 2 U A P + u f' added where it is wanted. Row by row of U A."""
    zero = tl.zeros_like(u[0])
    full, all_P, h, G, out = mirror(U, N), mirror(P, N), (), (), ()
    for _ in tl.static_range(N):
        h = h + (zero,)
    for _ in tl.static_range(N * (N + 1) // 2):
        G = G + (zero,)
    for i in tl.static_range(N):
        UA = scale(full[i * N], part(A, held_A, 0, N, DTYPE), N)
        for k in tl.static_range(1, N):
            UA = add(UA, scale(full[i * N + k], part(A, held_A, k * N, N, DTYPE), N), N)
        row = part(A, held_A, i * N, N, DTYPE)
        h, G = add(h, scale(u[i], row, N), N), raised(G, row, UA, N)
        if WANTED:
            turned = times(all_P, UA, N)
            for j in tl.static_range(N):
                out = out + (sums[i * N + j] + 2.0 * turned[j] + u[i] * f[j],)
    return h, G, out


# What they are made of.


@triton.jit
def innovations(C, held_C, R, P, N: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr):
    """C P (M, N) and the lower triangle of C P C' + R."""
    full = mirror(P, N)
    CP, S = (), ()
    for j in tl.static_range(M):
        CP = CP + times(full, part(C, held_C, j * N, N, DTYPE), N)
    for i in tl.static_range(M):
        c = part(C, held_C, i * N, N, DTYPE)
        for j in tl.static_range(i + 1):
            S = S + (R[i * (i + 1) // 2 + j] + dot(c, CP[j * N : j * N + N], N),)
    return CP, S


@triton.jit
def decorrelated(inverse, X, M: tl.constexpr, J: tl.constexpr):
    """L^-1 X of an (M, J) matrix, the inverse given below its unit diagonal."""
    out = ()
    for i in tl.static_range(M):
        for k in tl.static_range(J):
            s = X[i * J + k]
            for j in tl.static_range(i):
                s += inverse[i * (i - 1) // 2 + j] * X[j * J + k]
            out = out + (s,)
    return out


@triton.jit
def recorrelated(inverse, X, M: tl.constexpr, J: tl.constexpr):
    """L'^-1 X."""
    out = ()
    for i in tl.static_range(M):
        for k in tl.static_range(J):
            s = X[i * J + k]
            for j in tl.static_range(i + 1, M):
                s += inverse[j * (j - 1) // 2 + i] * X[j * J + k]
            out = out + (s,)
    return out


@triton.jit
def back_covariance(G, K, C, g, r, q, weights, N: tl.constexpr, M: tl.constexpr):
    """The lower triangle of dP^-, y as (M, N) and x as (N, M); K and C are rows for the channels, weights are g / (2 D)."""
    full = mirror(G, N)
    y, x, out = (), (), ()
    for j in tl.static_range(M):
        y = y + times(full, K[j * N : j * N + N], N)
    half = ()
    for i in tl.static_range(N):
        half = half + (0.5 * q[i] + 0.25 * g * r[i],)
    for i in tl.static_range(N):
        row = ()
        for k in tl.static_range(N):
            s = full[i * N + k]
            for j in tl.static_range(M):
                s -= C[j * N + i] * y[j * N + k]
            row = row + (s,)
        factors = ()
        for j in tl.static_range(M):
            s = dot(row, K[j * N : j * N + N], N)
            x = x + (s,)
            factors = factors + (s + weights[j] * C[j * N + i],)
        for k in tl.static_range(i + 1):
            s = row[k] + r[i] * half[k] + half[i] * r[k]
            for j in tl.static_range(M):
                s -= factors[j] * C[j * N + k]
            out = out + (s,)
    return out, y, x


@triton.jit
def back_noise(K, y, v, g, weights, inverse, kh, N: tl.constexpr, M: tl.constexpr):
    """The (M, M) dR."""
    out = ()
    for i in tl.static_range(M):
        for j in tl.static_range(i + 1):
            s = dot(K[i * N : i * N + N], y[j * N : j * N + N], N) - 0.5 * (kh[i] * v[j] + v[i] * kh[j]) + 0.5 * g * v[i] * v[j]
            if i == j:
                s -= weights[i]
            out = out + (s,)
    return recorrelated(inverse, transpose(recorrelated(inverse, mirror(out, M), M, M), M, M), M, M)
