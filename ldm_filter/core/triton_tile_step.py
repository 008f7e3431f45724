"""One step of the Kalman filter and of its adjoint on tiles: the equations of :mod:`ldm_filter.core.triton_step`, in the same names."""

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_tiles import dot, eye, read_matrix, row_of, symmetric, whitening, write_matrix

__all__ = ["arriving", "collect", "covariance_adjoint", "finish", "gain", "joseph", "noise", "predicted_cov"]


@triton.jit
def predicted_cov(A, Q, P0, P, b, t, T, N: tl.constexpr, NP: tl.constexpr, DTYPE: tl.constexpr):
    """A (zeros at t = 0), A P and P^-."""
    transition = read_matrix(row_of(A, b, 0 * b, t, T, N * N), t > 0, N, N, NP, NP, DTYPE)
    moved = read_matrix(row_of(Q, b, 0 * b, t, T, N * N), t > 0, N, N, NP, NP, DTYPE)
    start = read_matrix(row_of(P0, b, 0 * b, t, T, N * N), t < 1, N, N, NP, NP, DTYPE)
    AP = dot(transition, P)
    return transition, AP, symmetric(moved + start + dot(AP, tl.trans(transition)))


@triton.jit
def noise(R, b, t, T, M: tl.constexpr, MP: tl.constexpr, DTYPE: tl.constexpr):
    """R, of which only the symmetric part counts."""
    return symmetric(read_matrix(row_of(R, b, 0 * b, t, T, M * M), t >= 0, M, M, MP, MP, DTYPE))


@triton.jit
def gain(P, C, R, N: tl.constexpr, M: tl.constexpr, NP: tl.constexpr, MP: tl.constexpr, DTYPE: tl.constexpr):
    """K, J, the inverse of the factor of S, and whether there is one."""
    CP = dot(C, P)
    W, positive = whitening(symmetric(R + dot(CP, tl.trans(C))), M, MP, DTYPE)
    K = dot(tl.trans(dot(W, CP)), W)
    return K, eye(N, NP, DTYPE) - dot(K, C), W, positive


@triton.jit
def joseph(P, K, J, R):
    """J P J' + K R K'."""
    return symmetric(dot(dot(J, P), tl.trans(J)) + dot(dot(K, R), tl.trans(K)))


@triton.jit
def covariance_adjoint(G, hv, vv, g, K, J, W, C):
    """dP^-, dR, and dC before it is multiplied with P^-, from G, h v', g v v' and g."""
    S0 = 0.5 * (vv - g * dot(tl.trans(W), W))
    Kt = tl.trans(K)
    GJ, S0C, V = dot(G, J), dot(S0, C), dot(tl.trans(hv), J)
    at_predicted = symmetric(dot(tl.trans(J), GJ) + dot(tl.trans(C), V + S0C))
    Khv = dot(Kt, hv)
    at_R = symmetric(S0 + dot(dot(Kt, G), K) - Khv)
    return at_predicted, at_R, 2.0 * (S0C - dot(Kt, GJ)) + V - dot(Khv, C)


# Gradients of the model: at every step, or summed over all of them.


@triton.jit
def collect(field, b, t, T, sums, X, I: tl.constexpr, J: tl.constexpr, IP: tl.constexpr, JP: tl.constexpr):
    """Write the gradient of this step, where it is wanted, or add it to the sums over time. Each program has a row of its own."""
    if field[0] is not None:
        if field[2] is None:
            sums += X
        else:
            write_matrix(row_of(field, b, b, t, T, I * J), X, I, J, IP, JP)
    return sums


@triton.jit
def finish(field, b, T, sums, I: tl.constexpr, J: tl.constexpr, IP: tl.constexpr, JP: tl.constexpr):
    """Write the sums over time."""
    if field[0] is not None and field[2] is None:
        write_matrix(row_of(field, b, b, 0, T, I * J), sums, I, J, IP, JP)


@triton.jit
def arriving(field, b, t, T, N: tl.constexpr, NP: tl.constexpr, DTYPE: tl.constexpr):
    """A symmetric gradient that arrives at a covariance, zeros where none does."""
    if field[0] is None:
        out = tl.full((NP, NP), 0.0, DTYPE)
    else:
        out = symmetric(read_matrix(row_of(field, b, 0 * b, t, T, N * N), t >= 0, N, N, NP, NP, DTYPE))
    return out
