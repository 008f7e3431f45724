"""Where a GPU kernel with its matrices in registers reads and writes them.

A field is a tuple ``(pointer, own, varying)`` over contiguous rows of numbers: ``own`` is None where all sequences share
the row, ``varying`` is None where all steps do.

The rows of a block of sequences are read and written as one tile, so that neighbouring threads touch neighbouring numbers. Its pointers
are carried from step to step: Triton looks through all that a pointer is computed from, which takes minutes otherwise.
"""

# ruff: noqa: RUF005 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["moved", "places", "read", "write"]


@triton.jit
def places(fields, counts: tl.constexpr, b, shared, t, T, SIZE: tl.constexpr):
    """Where the rows of these fields are at step t: of sequences b, or, pointers of a single number, of the ``shared``-th of what they share."""
    out = ()
    for k in tl.static_range(SIZE):
        out = out + (_place(fields[k], b, shared, t, T, counts[k]),)
    return out


@triton.jit
def _place(field, b, shared, t, T, COUNT: tl.constexpr):
    if field[0] is None:
        out = shared
    elif field[1] is None:
        row = shared.to(tl.int64)
        out = field[0] + (row * T + t if field[2] is not None else row) * COUNT
    else:
        W: tl.constexpr = triton.next_power_of_2(COUNT)
        row = b.to(tl.int64) * T + t if field[2] is not None else b.to(tl.int64)
        out = field[0] + (row if COUNT == 1 else (row * COUNT)[:, None] + tl.arange(0, W)[None, :])
    return out


@triton.jit
def moved(at, fields, counts: tl.constexpr, steps, still, SIZE: tl.constexpr):
    """The places some steps on; ``still`` is 0, which the compiler must not know, or it would not carry what stays where it is."""
    out = ()
    for k in tl.static_range(SIZE):
        if fields[k][0] is None:
            out = out + (at[k],)
        elif fields[k][2] is not None:
            out = out + (at[k] + steps * counts[k],)
        else:
            out = out + ((at[k] if fields[k][1] is None else at[k] + still),)
    return out


@triton.jit
def read(at, on, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """A row of COUNT numbers for each sequence, or one for all of them; zeros where ``on``, for a step or each sequence, is False."""
    out = ()
    if len(at.shape) == 0:
        for k in tl.static_range(COUNT):
            out = out + (tl.load(at + k, mask=on, other=0.0).to(DTYPE),)
    elif COUNT == 1:
        out = (tl.load(at, mask=tl.where(on, tl.arange(0, at.shape[0]), -1) >= 0, other=0.0).to(DTYPE),)
    else:
        here = tl.where(on, tl.arange(0, at.shape[0]), -1)[:, None] >= 0
        out = _columns(tl.load(at, mask=here & (tl.arange(0, at.shape[1])[None, :] < COUNT), other=0.0).to(DTYPE), at.shape[1])
    return out


@triton.jit
def write(at, inside, values, COUNT: tl.constexpr):
    """A row for each sequence inside the batch, or one for all of them: the sum over the block where each sequence has a value."""
    if len(at.shape) == 0:
        for k in tl.static_range(COUNT):
            tl.store(at + k, (values[k] if len(values[k].shape) == 0 else tl.sum(values[k], 0)).to(at.dtype.element_ty))
    elif COUNT == 1:
        tl.store(at, values[0].to(at.dtype.element_ty), mask=inside)
    else:
        tile = _tile(values, COUNT, at.shape[1], at.dtype.scalar.element_ty)
        tl.store(at, tile, mask=inside[:, None] & (tl.arange(0, at.shape[1])[None, :] < COUNT))


@triton.jit
def _columns(tile, W: tl.constexpr):
    """The columns of a (BLOCK, W) tile, W a power of two: halved again and again, the last bit of the index first."""
    BLOCK: tl.constexpr = tile.shape[0]
    parts = (tile,)
    for level in tl.static_range(12):
        if (W >> level) > 1:
            even = ()
            odd = ()
            for k in tl.static_range(1 << level):
                if (W >> level) > 2:
                    x, y = tl.split(parts[k].reshape(BLOCK, (W >> level) // 2, 2))
                else:
                    x, y = tl.split(parts[k])
                even = even + (x,)
                odd = odd + (y,)
            parts = even + odd
    return parts


@triton.jit
def _tile(values, COUNT: tl.constexpr, W: tl.constexpr, DTYPE: tl.constexpr):
    """The (BLOCK, W) tile with these columns and zeros: joined in pairs again and again, the first bit of the index first."""
    BLOCK: tl.constexpr = values[0].shape[0]
    parts = ()
    for k in tl.static_range(W):
        parts = parts + ((values[k].to(DTYPE) if k < COUNT else tl.full((BLOCK,), 0.0, DTYPE)),)
    for level in tl.static_range(12):
        if (W >> level) > 1:
            joined = ()
            for k in tl.static_range((W >> level) // 2):
                joined = joined + (tl.join(parts[k], parts[k + (W >> level) // 2]).reshape(BLOCK, 2 << level),)
            parts = joined
    return parts[0]
