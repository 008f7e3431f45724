"""One step of the Kalman filter and of its adjoint in a GPU's registers, and where the gradients of the model go.

Forward, from P = 0 and f = 0, with P^- = P0 and p = h0 in place of the prediction at t = 0:

    P^- = A P A' + Q        S = C P^- C' + R = L L'        K = P^- C' S^-1        J = I - K C
    P = J P^- J' + K R K'   p = A f + a   e = z - C p   f = p + K e   v = S^-1 e   l = -(e'v + log det S + seen log 2 pi) / 2

Adjoint, backwards in time, from the saved f and P of the step before: the rest is computed anew. g weighs l, and G (symmetric)
and h are the gradients at P and f, with what comes from later steps:

    W = G J         S0 = (g v v' - g S^-1) / 2          V = v h' J           Z = V + S0 C
    dP^- = J' W + (C' Z + Z' C) / 2                     dR = S0 + K' G K - (K' h v' + v h' K) / 2
    dC = (2 S0 C - 2 K' W + V - K' h v' C) P^- - dz p'  dz = K' h - g v      dp = h - C' dz
    dA = 2 dP^- A P + dp f'     dQ = dP^-     da = dp   at the step before:  G = A' dP^- A,  h = A' dp

It is the adjoint in the guise of Joseph's form: nothing is subtracted that is almost equal.
"""

# ruff: noqa: RUF005, SIM108 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_matrix import (
    add,
    cholesky,
    identity_less,
    inverse_of_square,
    lower_product,
    product,
    scale,
    solve_lower,
    solve_upper,
    subtract,
    symmetric,
    transpose,
    twice_symmetric,
    zeros,
)
from ldm_filter.core.triton_memory import read, write

__all__ = [
    "FLOATS",
    "arriving",
    "chosen",
    "collect",
    "covariance_adjoint",
    "finish",
    "gain",
    "joseph",
    "lifted",
    "log_density",
    "mean_adjoint",
    "predicted_cov",
    "predicted_mean",
]

FLOATS = {"torch.float32": tl.float32, "torch.float64": tl.float64}
LOG_2PI = tl.constexpr(1.8378770664093453)


# The algebra of one step.


@triton.jit
def predicted_cov(A, Q, P0, P, t, N: tl.constexpr, DTYPE: tl.constexpr):
    """A (zeros at t = 0), A P and P^-."""
    transition = read(A, t > 0, N * N, DTYPE)
    noise = read(Q, t > 0, N * N, DTYPE)
    start = read(P0, t < 1, N * N, DTYPE)
    AP = product(transition, P, N, N, N)
    return transition, AP, lower_product(symmetric(add(noise, start, N * N), N), AP, transpose(transition, N, N), N, N)


@triton.jit
def gain(P, C, R, N: tl.constexpr, M: tl.constexpr):
    """K, J, the factor of S, the inverses of its diagonal, and whether there is one."""
    CP = product(C, P, M, N, N)
    L, inverse, positive = cholesky(lower_product(R, CP, transpose(C, M, N), M, N), M)
    K = transpose(solve_upper(L, inverse, solve_lower(L, inverse, CP, M, N), M, N), M, N)
    return K, identity_less(product(K, C, N, M, N), N), L, inverse, positive


@triton.jit
def joseph(P, K, J, R, N: tl.constexpr, M: tl.constexpr):
    """J P J' + K R K'."""
    KRK = lower_product(zeros_like(P, N * N), product(K, R, N, M, M), transpose(K, N, M), N, M)
    return lower_product(KRK, product(J, P, N, N, N), transpose(J, N, N), N, N)


@triton.jit
def zeros_like(X, COUNT: tl.constexpr):
    """Zeros, as many and of the kind of X."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.zeros_like(X[k]),)
    return out


@triton.jit
def predicted_mean(transition, a, h0, f, t, N: tl.constexpr, DTYPE: tl.constexpr):
    """p; the transition and f are zero at t = 0."""
    offset = read(a, t > 0, N, DTYPE)
    start = read(h0, t < 1, N, DTYPE)
    return add(product(transition, f, N, N, 1), add(offset, start, N), N)


@triton.jit
def log_density(e, L, inverse, seen, M: tl.constexpr):
    """log N(e; 0, L L') of the seen channels."""
    w = solve_lower(L, inverse, e, M, 1)
    total = seen * LOG_2PI
    for i in tl.static_range(M):
        total += w[i] * w[i] + 2.0 * tl.log(L[i * (i + 1) // 2 + i])
    return -0.5 * total


@triton.jit
def lifted(P, LIFT: tl.constexpr, N: tl.constexpr):
    """P with its variances raised by as much as rounding to the output could take."""
    out = ()
    for i in tl.static_range(N):
        for j in tl.static_range(N):
            out = out + ((P[i * N + j] * LIFT if i == j else P[i * N + j]),)
    return out


@triton.jit
def covariance_adjoint(G, hv, vv, g, K, J, L, inverse, C, N: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """dP^-, dR, and dC before it is multiplied with P^-, from G, h v', g v v' and g."""
    S0 = scale(0.5, subtract(vv, scale(g, inverse_of_square(L, inverse, M, BLOCK, DTYPE), M * M), M * M), M * M)
    Kt = transpose(K, N, M)
    W = product(G, J, N, N, N)
    V = product(transpose(hv, N, M), J, M, N, N)
    S0C = product(S0, C, M, M, N)
    CZ = product(transpose(C, M, N), add(V, S0C, M * N), N, M, N)
    at_predicted = lower_product(scale(0.5, twice_symmetric(CZ, N), N * N), transpose(J, N, N), W, N, N)
    Khv = product(Kt, hv, M, N, M)
    at_R = lower_product(subtract(S0, scale(0.5, twice_symmetric(Khv, M), M * M), M * M), product(Kt, G, M, N, N), K, M, N)
    at_C = subtract(scale(2.0, subtract(S0C, product(Kt, W, M, N, N), M * N), M * N), product(Khv, C, M, M, N), M * N)
    return at_predicted, at_R, add(at_C, V, M * N)


@triton.jit
def mean_adjoint(h, g, v, K, C, N: tl.constexpr, M: tl.constexpr):
    """dz, and what of dp does not arrive at the prediction itself."""
    at_z = subtract(product(transpose(K, N, M), h, M, N, 1), scale(g, v, M), M)
    return at_z, subtract(h, product(transpose(C, M, N), at_z, N, M, 1), N)


# Gradients of the model: kept for each sequence or summed over its block, at every step or over all of them.


@triton.jit
def collect(field, at, sums, inside, values, COUNT: tl.constexpr):
    """Write the gradient of this step, where it is wanted, or add it to the sums over time."""
    if field[0] is not None:
        if field[2] is None:
            sums = add(sums, values, COUNT)
        else:
            write(at, inside, values, COUNT)
    return sums


@triton.jit
def finish(field, at, sums, inside, COUNT: tl.constexpr):
    """Write the sums over time."""
    if field[0] is not None and field[2] is None:
        write(at, inside, sums, COUNT)


@triton.jit
def arriving(field, at, on, COUNT: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """A gradient that arrives at an output, zeros where none does."""
    if field[0] is None:
        out = zeros(COUNT, BLOCK, DTYPE)
    else:
        out = read(at, on, COUNT, DTYPE)
    return out


@triton.jit
def chosen(first, X, Y, COUNT: tl.constexpr):
    """X where ``first``, else Y."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.where(first, X[k], Y[k]),)
    return out
