"""Small matrices in a GPU's registers: the vocabulary of :mod:`ldm_filter.core.triton_step`.

A matrix is a tuple of its entries, row by row. An entry is a block of numbers, one for each sequence and so one for each
thread, or a single number that all sequences share. Sizes are known when a kernel is compiled: every loop over entries is
unrolled, and the entry (j, i) of a symmetric matrix is the very register of (i, j).
"""

# ruff: noqa: RUF005, SIM108 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["add", "cast", "lower", "mirror", "outer", "product", "scale", "subtract", "symmetric", "transpose", "zeros"]


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
def cast(X, DTYPE: tl.constexpr):
    """X in another dtype."""
    out = ()
    for k in tl.static_range(len(X)):
        out = out + (X[k].to(DTYPE),)
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
def lower(X, I: tl.constexpr):
    """The lower triangle of an (I, I) matrix, row by row."""
    out = ()
    for i in tl.static_range(I):
        for j in tl.static_range(i + 1):
            out = out + (X[i * I + j],)
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
def outer(x, y, I: tl.constexpr, J: tl.constexpr):
    """x y' of two vectors."""
    return product(x, y, I, 1, J)
