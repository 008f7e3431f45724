"""Matrices as tiles of a GPU program, for states that do not fit the registers of one thread: the vocabulary of the tiled kernels.

A matrix is one tile, spread over the threads of a program and filled up with zeros to powers of two (at least 8, or 16 with a Triton before
3.9); products run on tensor cores where there are some for the dtype.

A field is a tuple ``(pointer, own, varying)`` over contiguous rows of numbers: ``own`` is None where all sequences share the row,
``varying`` is None where all steps do.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "dot",
    "eye",
    "log_diagonal",
    "outer",
    "read_matrix",
    "read_rows",
    "read_vector",
    "row_of",
    "symmetric",
    "times",
    "transposed_times",
    "whitening",
    "write_matrix",
    "write_rows",
    "write_vector",
]


@triton.jit
def dot(X, Y):
    """X Y, every product and sum in the dtype of the two."""
    return tl.dot(X, Y, input_precision="ieee", out_dtype=X.dtype)


@triton.jit
def times(X, v):
    """X v."""
    return tl.sum(X * v[None, :], 1)


@triton.jit
def transposed_times(X, v):
    """X' v."""
    return tl.sum(X * v[:, None], 0)


@triton.jit
def outer(u, v):
    """u v'."""
    return u[:, None] * v[None, :]


@triton.jit
def symmetric(X):
    """(X + X') / 2."""
    return 0.5 * (X + tl.trans(X))


@triton.jit
def eye(I: tl.constexpr, IP: tl.constexpr, DTYPE: tl.constexpr):
    """The unit matrix of size I in a tile of size IP."""
    i, j = tl.arange(0, IP)[:, None], tl.arange(0, IP)[None, :]
    return tl.where((i == j) & (i < I), 1.0, 0.0).to(DTYPE)


@triton.jit
def whitening(S, M: tl.constexpr, MP: tl.constexpr, DTYPE: tl.constexpr):
    """L^-1 for S = L L', and whether all pivots are positive: the others count as 1. Elimination, row by row, on S and the unit matrix."""
    i = tl.arange(0, MP)
    W = eye(M, MP, DTYPE)
    smallest = tl.full((), 1.0, DTYPE)
    for k in range(M):
        here = i == k
        row, column = tl.sum(tl.where(here[:, None], S, 0.0), 0), tl.sum(tl.where(here[None, :], S, 0.0), 1)
        pivot = tl.sum(tl.where(here, row, 0.0), 0)
        smallest = tl.where(pivot > 0.0, smallest, 0.0)
        pivot = tl.where(pivot > 0.0, pivot, 1.0)
        below = tl.where(i > k, column, 0.0) / pivot
        done = tl.sum(tl.where(here[:, None], W, 0.0), 0)
        S -= outer(below, row)
        W = tl.where(here[:, None], (done / tl.sqrt(pivot))[None, :], W - outer(below, done))
    return W, smallest > 0.0


@triton.jit
def log_diagonal(W, M: tl.constexpr, MP: tl.constexpr):
    """The sum of the logarithms of the diagonal."""
    i, j = tl.arange(0, MP)[:, None], tl.arange(0, MP)[None, :]
    return tl.sum(tl.log(tl.sum(tl.where(i == j, tl.where(i < M, W, 1.0), 0.0), 1)), 0)


# Memory.


@triton.jit
def row_of(field, b, shared, t, T, COUNT: tl.constexpr):
    """Where the row at step t begins: of sequence b (or of a block of sequences), or of the ``shared``-th of what they share."""
    row = (b if field[1] is not None else shared).to(tl.int64)
    return field[0] + (row * T + t if field[2] is not None else row) * COUNT


@triton.jit
def read_vector(at, on, I: tl.constexpr, IP: tl.constexpr, DTYPE: tl.constexpr):
    """A row of I numbers; zeros where ``on`` is False."""
    i = tl.arange(0, IP)
    return tl.load(at + i, mask=tl.where(on, i, I) < I, other=0.0).to(DTYPE)


@triton.jit
def read_matrix(at, on, I: tl.constexpr, J: tl.constexpr, IP: tl.constexpr, JP: tl.constexpr, DTYPE: tl.constexpr):
    """An (I, J) matrix; zeros where ``on`` is False."""
    i, j = tl.arange(0, IP)[:, None], tl.arange(0, JP)[None, :]
    return tl.load(at + i * J + j, mask=(tl.where(on, i, I) < I) & (j < J), other=0.0).to(DTYPE)


@triton.jit
def read_rows(field, b, shared, t, T, on, I: tl.constexpr, IP: tl.constexpr, DTYPE: tl.constexpr):
    """A row of I numbers for each sequence of a block, or one in a tile of height 1 for all of them; zeros where ``on`` is False."""
    at, i = row_of(field, b, shared, t, T, I), tl.arange(0, IP)[None, :]
    if field[1] is None:
        out = tl.load(at + i, mask=i < I, other=0.0).to(DTYPE)
        out = tl.where(on[:, None], out, 0.0)
    else:
        out = tl.load(at[:, None] + i, mask=tl.where(on[:, None], i, I) < I, other=0.0).to(DTYPE)
    return out


@triton.jit
def write_vector(at, x, I: tl.constexpr, IP: tl.constexpr):
    """A row of I numbers."""
    i = tl.arange(0, IP)
    tl.store(at + i, x.to(at.dtype.element_ty), mask=i < I)


@triton.jit
def write_matrix(at, X, I: tl.constexpr, J: tl.constexpr, IP: tl.constexpr, JP: tl.constexpr):
    """An (I, J) matrix."""
    i, j = tl.arange(0, IP)[:, None], tl.arange(0, JP)[None, :]
    tl.store(at + i * J + j, X.to(at.dtype.element_ty), mask=(i < I) & (j < J))


@triton.jit
def write_rows(field, b, shared, t, T, inside, X, I: tl.constexpr, IP: tl.constexpr):
    """A row of I numbers for each sequence inside the batch, or for all of them the sum over the block, where ``inside`` must say nothing new."""
    at, i = row_of(field, b, shared, t, T, I), tl.arange(0, IP)
    if field[1] is None:
        tl.store(at + i, tl.sum(X, 0).to(at.dtype.element_ty), mask=i < I)
    else:
        tl.store(at[:, None] + i[None, :], X.to(at.dtype.element_ty), mask=(i < I)[None, :] & inside[:, None])
