"""Small matrices in a GPU's registers: the vocabulary of :mod:`ldm_filter.core.triton_step`.

A matrix is a tuple of its entries, row by row. An entry is a block of numbers, one for each sequence and so one for each
thread, or a single number that all sequences share. Sizes are known when a kernel is compiled: every loop over entries is
unrolled, and the entry (j, i) of a symmetric matrix is the very register of (i, j).
"""

# ruff: noqa: RUF005, SIM108 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "add",
    "cholesky",
    "identity_less",
    "inverse_of_square",
    "lower_product",
    "mirror",
    "outer",
    "product",
    "scale",
    "solve_lower",
    "solve_upper",
    "subtract",
    "symmetric",
    "transpose",
    "twice_symmetric",
    "zeros",
]


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """COUNT zeros for each sequence, or COUNT numbers where BLOCK is 0."""
    if BLOCK == 0:
        zero = tl.full((), 0.0, DTYPE)
    else:
        zero = tl.full((BLOCK,), 0.0, DTYPE)
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (zero,)
    return out


@triton.jit
def add(X, Y, COUNT: tl.constexpr):
    """X + Y."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (X[k] + Y[k],)
    return out


@triton.jit
def subtract(X, Y, COUNT: tl.constexpr):
    """X - Y."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (X[k] - Y[k],)
    return out


@triton.jit
def scale(factor, X, COUNT: tl.constexpr):
    """A number times X."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (factor * X[k],)
    return out


@triton.jit
def transpose(X, I: tl.constexpr, J: tl.constexpr):
    """X' of an (I, J) matrix: other names for the same registers."""
    out = ()
    for j in tl.static_range(J):
        for i in tl.static_range(I):
            out = out + (X[i * J + j],)
    return out


@triton.jit
def mirror(X, I: tl.constexpr):
    """The (I, I) matrix whose lower triangle is X, row by row: other names for the same registers."""
    out = ()
    for i in tl.static_range(I):
        for j in tl.static_range(I):
            out = out + ((X[i * (i + 1) // 2 + j] if i >= j else X[j * (j + 1) // 2 + i]),)
    return out


@triton.jit
def symmetric(X, I: tl.constexpr):
    """(X + X') / 2, of a full matrix."""
    out = ()
    for i in tl.static_range(I):
        for j in tl.static_range(i + 1):
            out = out + ((X[i * I + i] if i == j else 0.5 * (X[i * I + j] + X[j * I + i])),)
    return mirror(out, I)


@triton.jit
def twice_symmetric(X, I: tl.constexpr):
    """X + X', of a full matrix."""
    out = ()
    for i in tl.static_range(I):
        for j in tl.static_range(i + 1):
            out = out + (X[i * I + j] + X[j * I + i],)
    return mirror(out, I)


@triton.jit
def product(X, Y, I: tl.constexpr, K: tl.constexpr, J: tl.constexpr):
    """X Y of an (I, K) and a (K, J) matrix."""
    out = ()
    for i in tl.static_range(I):
        for j in tl.static_range(J):
            s = X[i * K] * Y[j]
            for k in tl.static_range(1, K):
                s += X[i * K + k] * Y[k * J + j]
            out = out + (s,)
    return out


@triton.jit
def lower_product(Z, X, Y, I: tl.constexpr, K: tl.constexpr):
    """Z + X Y of an (I, K) and a (K, I) matrix where that is symmetric; Z is too. Half the work of a product."""
    out = ()
    for i in tl.static_range(I):
        for j in tl.static_range(i + 1):
            s = Z[i * I + j]
            for k in tl.static_range(K):
                s += X[i * K + k] * Y[k * I + j]
            out = out + (s,)
    return mirror(out, I)


@triton.jit
def outer(x, y, I: tl.constexpr, J: tl.constexpr):
    """x y' of two vectors."""
    return product(x, y, I, 1, J)


@triton.jit
def identity_less(X, I: tl.constexpr):
    """1 - X."""
    out = ()
    for i in tl.static_range(I):
        for j in tl.static_range(I):
            out = out + ((1.0 - X[i * I + j] if i == j else -X[i * I + j]),)
    return out


@triton.jit
def cholesky(S, M: tl.constexpr):
    """The lower factor of S, row by row without the zeros; the inverses of its diagonal; whether all pivots are positive: the others count as 1."""
    L = ()
    inverse = ()
    positive = S[0] > 0.0
    for i in tl.static_range(M):
        for j in tl.static_range(i + 1):
            s = S[i * M + j]
            for k in tl.static_range(j):
                s -= L[i * (i + 1) // 2 + k] * L[j * (j + 1) // 2 + k]
            if i == j:
                positive = positive & (s > 0.0)
                root = tl.sqrt(tl.where(s > 0.0, s, 1.0))
                L = L + (root,)
                inverse = inverse + (1.0 / root,)
            else:
                L = L + (s * inverse[j],)
    return L, inverse, positive


@triton.jit
def solve_lower(L, inverse, X, M: tl.constexpr, J: tl.constexpr):
    """L^-1 X of an (M, J) matrix."""
    Y = ()
    for i in tl.static_range(M):
        for j in tl.static_range(J):
            s = X[i * J + j]
            for k in tl.static_range(i):
                s -= L[i * (i + 1) // 2 + k] * Y[k * J + j]
            Y = Y + (s * inverse[i],)
    return Y


@triton.jit
def solve_upper(L, inverse, X, M: tl.constexpr, J: tl.constexpr):
    """L'^-1 X of an (M, J) matrix, from the last row up."""
    Y = ()
    for up in tl.static_range(M):
        row = ()
        for j in tl.static_range(J):
            s = X[(M - 1 - up) * J + j]
            for k in tl.static_range(up):
                s -= L[(M - up + k) * (M - up + k + 1) // 2 + M - 1 - up] * Y[k * J + j]
            row = row + (s * inverse[M - 1 - up],)
        Y = row + Y
    return Y


@triton.jit
def inverse_of_square(L, inverse, M: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """(L L')^-1."""
    zero = zeros(1, BLOCK, DTYPE)[0]
    unit = ()
    for i in tl.static_range(M):
        for j in tl.static_range(M):
            unit = unit + ((zero + 1.0 if i == j else zero),)
    return symmetric(solve_upper(L, inverse, solve_lower(L, inverse, unit, M, M), M, M), M)
