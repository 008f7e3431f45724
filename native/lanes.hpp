// One sequence per SIMD lane: the small linear algebra of the kernels on blocks of W sequences at a time.
//
// A vector of n components for W sequences is n times Lanes<W>. All arithmetic is double; tensors of float are widened when
// they are read and rounded when they are written.
#pragma once

#include <algorithm>
#include <cstddef>

#if defined(_MSC_VER) && !defined(__clang__)
#define LDM_INLINE __forceinline
#define LDM_RESTRICT __restrict
#else
#define LDM_INLINE __attribute__((always_inline)) inline
#define LDM_RESTRICT __restrict__
#endif

// Compiled twice, for any processor and for those with AVX2 and FMA, and chosen when the module is loaded, where the compiler
// and the C library can. Named by level and not by processor: GCC takes arch=haswell for Intel's own processors only.
#if defined(LDM_TARGET_CLONES)
#define LDM_CLONED __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define LDM_CLONED
#endif

namespace ldm {

using Index = std::ptrdiff_t;
constexpr int kPack = 4;

// Four doubles. A vector type where the compiler has one (GCC, Clang): accumulators then stay in registers on any
// processor, which loops over a plain array do not achieve. Elsewhere four scalars with the same operators.
#if defined(__GNUC__) || defined(__clang__)
using Pack = double __attribute__((vector_size(kPack * sizeof(double)), aligned(kPack * sizeof(double))));
LDM_INLINE Pack join(double a, double b, double c, double d) { return Pack{a, b, c, d}; }
#else
struct alignas(kPack * sizeof(double)) Pack {
    double lane[kPack];
    double& operator[](int l) { return lane[l]; }
    double operator[](int l) const { return lane[l]; }
    Pack& operator+=(const Pack& o) {
        for (int l = 0; l < kPack; ++l) lane[l] += o.lane[l];
        return *this;
    }
    Pack& operator-=(const Pack& o) {
        for (int l = 0; l < kPack; ++l) lane[l] -= o.lane[l];
        return *this;
    }
    friend Pack operator*(const Pack& a, const Pack& b) {
        return Pack{{a.lane[0] * b.lane[0], a.lane[1] * b.lane[1], a.lane[2] * b.lane[2], a.lane[3] * b.lane[3]}};
    }
};
LDM_INLINE Pack join(double a, double b, double c, double d) { return Pack{{a, b, c, d}}; }
#endif

LDM_INLINE Pack spread(double x) { return join(x, x, x, x); }

template <int W>
struct Lanes {
    static_assert(W % kPack == 0, "a block is a whole number of packs");
    Pack part[W / kPack];
};

// The values of an argument for each sequence and step. Everything is contiguous. A time step of 0 means constant in time, a batch step of 0 shared by the batch.
template <class T>
struct Field {
    T* data;
    Index batch, time;
};

// The copy that is compiled for AVX loads whole packs, though the base instruction set would align them less.
static_assert(alignof(Lanes<kPack>) == kPack * sizeof(double), "a pack is aligned to its size");

// x_k = source[k] of `count` sequences, `stride` apart; 0 means that they share it. Lanes past `count` read `spare`, or where
// that is null repeat the last sequence, so that they can never produce a NaN or an infinity of their own.
template <int W, class Scalar>
LDM_INLINE void read(Lanes<W>* LDM_RESTRICT x, const Scalar* source, Index length, Index stride, int count, const Scalar* spare = nullptr) {
    for (int k = 0; k < W / kPack; ++k) {
        const Scalar* row[kPack];
        for (int l = 0; l < kPack; ++l) {
            const int sequence = k * kPack + l;
            row[l] = sequence < count ? source + sequence * stride : spare ? spare : source + (count - 1) * stride;
        }
        for (Index i = 0; i < length; ++i) x[i].part[k] = join(row[0][i], row[1][i], row[2][i], row[3][i]);
    }
}

template <int W, class Scalar>
LDM_INLINE void write(Scalar* target, const Lanes<W>* LDM_RESTRICT x, Index length, Index stride, int count) {
    for (int k = 0; k < W / kPack; ++k) {
        Scalar* row = target + k * kPack * stride;
        const int lanes = std::min(kPack, count - k * kPack);
        for (Index i = 0; i < length; ++i) {
            for (int l = 0; l < lanes; ++l) row[l * stride + i] = static_cast<Scalar>(x[i].part[k][l]);
        }
    }
}

template <int W>
LDM_INLINE void clear(Lanes<W>* x, Index size) {
    for (Index i = 0; i < size; ++i) x[i] = Lanes<W>{};
}

template <int W>
LDM_INLINE void copy(Lanes<W>* LDM_RESTRICT to, const Lanes<W>* LDM_RESTRICT from, Index size) {
    for (Index i = 0; i < size; ++i) to[i] = from[i];
}

template <int W>
LDM_INLINE void add(Lanes<W>* LDM_RESTRICT y, const Lanes<W>* LDM_RESTRICT x, Index size) {
    for (Index i = 0; i < size; ++i) {
        for (int k = 0; k < W / kPack; ++k) y[i].part[k] += x[i].part[k];
    }
}

// y += sign M x, with M[r, c] at matrix[r * row + c * column]: (columns, 1) for M, (1, columns) for the transpose.
template <int W>
LDM_INLINE void add_product(Lanes<W>* LDM_RESTRICT y, double sign, const double* LDM_RESTRICT matrix, Index row, Index column,
                            const Lanes<W>* LDM_RESTRICT x, Index rows, Index columns) {
    for (Index r = 0; r < rows; ++r) {
        Lanes<W> sum = y[r];
        for (Index c = 0; c < columns; ++c) {
            const Pack factor = spread(sign * matrix[r * row + c * column]);
            for (int k = 0; k < W / kPack; ++k) sum.part[k] += factor * x[c].part[k];
        }
        y[r] = sum;
    }
}

template <int W>
LDM_INLINE double total(const Lanes<W>& x) {
    Pack sum = x.part[0];
    for (int k = 1; k < W / kPack; ++k) sum += x.part[k];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// G += sign sum over steps and the block's sequences of x y', G of shape (rows, columns). A step is `rows` long in x and
// `columns` in y.
template <int W>
LDM_INLINE void add_outer(double* LDM_RESTRICT gradient, double sign, const Lanes<W>* LDM_RESTRICT x, const Lanes<W>* LDM_RESTRICT y, Index rows,
                          Index columns, Index steps) {
    for (Index r = 0; r < rows; ++r) {
        for (Index c = 0; c < columns; ++c) {
            Lanes<W> sum{};
            for (Index s = 0; s < steps; ++s) {
                for (int k = 0; k < W / kPack; ++k) sum.part[k] += x[s * rows + r].part[k] * y[s * columns + c].part[k];
            }
            gradient[r * columns + c] += sign * total(sum);
        }
    }
}

// The same for a matrix of each step, `stride` apart, or with a stride of 0 for one that all steps share.
template <int W>
LDM_INLINE void add_outers(double* gradient, Index stride, double sign, const Lanes<W>* x, const Lanes<W>* y, Index rows, Index columns, Index steps) {
    if (stride == 0) return add_outer(gradient, sign, x, y, rows, columns, steps);
    for (Index s = 0; s < steps; ++s) add_outer(gradient + s * stride, sign, x + s * rows, y + s * columns, rows, columns, 1);
}

// Gradient of a vector that the batch shares (stride 0: summed over the block) or that each sequence has to itself.
template <int W>
LDM_INLINE void add_vector(double* gradient, const Lanes<W>* LDM_RESTRICT x, Index size, Index stride, int count) {
    for (Index i = 0; i < size; ++i) {
        if (stride == 0) {
            gradient[i] += total(x[i]);
        } else {
            for (int l = 0; l < count; ++l) gradient[l * stride + i] += x[i].part[l / kPack][l % kPack];
        }
    }
}

// The same for a matrix that each sequence has to itself, row-major.
template <int W>
LDM_INLINE void add_own_product(Lanes<W>* LDM_RESTRICT y, double sign, const Lanes<W>* LDM_RESTRICT matrix, Index row, Index column,
                                const Lanes<W>* LDM_RESTRICT x, Index rows, Index columns) {
    for (Index r = 0; r < rows; ++r) {
        Lanes<W> sum{};
        for (Index c = 0; c < columns; ++c) {
            for (int k = 0; k < W / kPack; ++k) sum.part[k] += matrix[r * row + c * column].part[k] * x[c].part[k];
        }
        for (int k = 0; k < W / kPack; ++k) y[r].part[k] += spread(sign) * sum.part[k];
    }
}

// The gradient of such a matrix: += sign x y' of one step for each sequence, `stride` apart.
template <int W>
LDM_INLINE void add_own_outer(double* gradient, Index stride, double sign, const Lanes<W>* x, const Lanes<W>* y, Index rows, Index columns, int count) {
    for (Index r = 0; r < rows; ++r) {
        for (Index c = 0; c < columns; ++c) {
            Lanes<W> entry;
            for (int k = 0; k < W / kPack; ++k) entry.part[k] = spread(sign) * x[r].part[k] * y[c].part[k];
            add_vector(gradient + r * columns + c, &entry, 1, stride, count);
        }
    }
}

}  // namespace ldm
