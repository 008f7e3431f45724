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

from ldm_filter.core.triton_matrix import add, mirror, product, scale, subtract, transpose, zeros
from ldm_filter.core.triton_memory import read, write

__all__ = ["FLOATS", "LOG_2PI", "arriving", "chosen", "collect", "collect_symmetric", "finish", "lifted", "mean_adjoint", "predicted_mean"]

FLOATS = {"torch.float32": tl.float32, "torch.float64": tl.float64}
LOG_2PI = tl.constexpr(1.8378770664093453)


# The algebra of one step.


@triton.jit
def predicted_mean(transition, a, h0, f, t, N: tl.constexpr, DTYPE: tl.constexpr):
    """p; the transition and f are zero at t = 0."""
    offset = read(a, t > 0, N, DTYPE)
    start = read(h0, t < 1, N, DTYPE)
    return add(product(transition, f, N, N, 1), add(offset, start, N), N)


@triton.jit
def lifted(P, LIFT: tl.constexpr, N: tl.constexpr):
    """P with its variances raised by as much as rounding to the output could take."""
    out = ()
    for i in tl.static_range(N):
        for j in tl.static_range(N):
            out = out + ((P[i * N + j] * LIFT if i == j else P[i * N + j]),)
    return out


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
def collect_symmetric(field, at, sums, inside, values, N: tl.constexpr):
    """The same for lower triangles."""
    if field[0] is not None:
        if field[2] is None:
            sums = add(sums, values, N * (N + 1) // 2)
        else:
            write(at, inside, mirror(values, N), N * N)
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
