// Small dense matrices, row-major, of numbers V: Lanes<W> for the matrices of W sequences side by side, or double for one
// sequence alone, whose rows are then worked on four columns at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lanes.hpp"

namespace ldm {

// Numbers.

template <int W>
LDM_INLINE Lanes<W>& operator+=(Lanes<W>& a, const Lanes<W>& b) {
    for (int k = 0; k < W / kPack; ++k) a.part[k] += b.part[k];
    return a;
}

template <int W>
LDM_INLINE Lanes<W>& operator-=(Lanes<W>& a, const Lanes<W>& b) {
    for (int k = 0; k < W / kPack; ++k) a.part[k] -= b.part[k];
    return a;
}

template <int W>
LDM_INLINE Lanes<W> operator*(const Lanes<W>& a, const Lanes<W>& b) {
    Lanes<W> product;
    for (int k = 0; k < W / kPack; ++k) product.part[k] = a.part[k] * b.part[k];
    return product;
}

template <int W>
LDM_INLINE Lanes<W> operator*(double a, const Lanes<W>& b) {
    Lanes<W> product;
    for (int k = 0; k < W / kPack; ++k) product.part[k] = spread(a) * b.part[k];
    return product;
}

// f of each lane.
template <int W, class Function>
LDM_INLINE Lanes<W> map(const Lanes<W>& a, Function f) {
    Lanes<W> y;
    for (int k = 0; k < W / kPack; ++k) y.part[k] = join(f(a.part[k][0]), f(a.part[k][1]), f(a.part[k][2]), f(a.part[k][3]));
    return y;
}

template <class Function>
LDM_INLINE double map(double a, Function f) {
    return f(a);
}

template <int W>
LDM_INLINE double lane(const Lanes<W>& a, int l) {
    return a.part[l / kPack][l % kPack];
}

LDM_INLINE double lane(double a, int) { return a; }

// The smaller one, and NaN where either is.
LDM_INLINE double smaller(double a, double b) { return a < b || a != a ? a : b; }

template <int W>
LDM_INLINE Lanes<W> smaller(const Lanes<W>& a, const Lanes<W>& b) {
    Lanes<W> y;
    for (int k = 0; k < W / kPack; ++k) {
        for (int l = 0; l < kPack; ++l) y.part[k][l] = smaller(a.part[k][l], b.part[k][l]);
    }
    return y;
}

// One sequence alone reads, writes and sums as a block of one.

LDM_INLINE void read(double* LDM_RESTRICT x, const double* source, Index length, Index, int, const double* = nullptr) {
    std::copy(source, source + length, x);
}

LDM_INLINE void write(double* target, const double* LDM_RESTRICT x, Index length, Index, int) { std::copy(x, x + length, target); }

LDM_INLINE void add_vector(double* LDM_RESTRICT gradient, const double* LDM_RESTRICT x, Index size, Index, int) {
    for (Index i = 0; i < size; ++i) gradient[i] += x[i];
}

// Products.

// Four neighbouring columns of a row.
template <class V>
struct Four {
    V column[4];
};

template <>
struct Four<double> {
    Pack column;
};

template <class V>
LDM_INLINE Four<V> load(const V* x) {
    return {{x[0], x[1], x[2], x[3]}};
}

template <>
LDM_INLINE Four<double> load(const double* x) {
    Four<double> y;
    std::memcpy(&y.column, x, sizeof y.column);
    return y;
}

template <class V>
LDM_INLINE void store(V* x, const Four<V>& y) {
    for (int c = 0; c < 4; ++c) x[c] = y.column[c];
}

LDM_INLINE void store(double* x, const Four<double>& y) { std::memcpy(x, &y.column, sizeof y.column); }

template <int Sign, class V>
LDM_INLINE void add_scaled(Four<V>& y, const V& a, const Four<V>& x) {
    for (int c = 0; c < 4; ++c) {
        if (Sign > 0) {
            y.column[c] += a * x.column[c];
        } else {
            y.column[c] -= a * x.column[c];
        }
    }
}

template <int Sign>
LDM_INLINE void add_scaled(Four<double>& y, const double& a, const Four<double>& x) {
    if (Sign > 0) {
        y.column += spread(a) * x.column;
    } else {
        y.column -= spread(a) * x.column;
    }
}

// Rows [i, i + R) of y += Sign a b, columns [0, last).
template <int R, int Sign, class V>
LDM_INLINE void add_rows(V* LDM_RESTRICT y, const V* LDM_RESTRICT a, const V* LDM_RESTRICT b, Index i, Index inner, Index columns, Index last) {
    Index j = 0;
    for (; j < last && j + 4 <= columns; j += 4) {
        Four<V> sum[R];
        for (int r = 0; r < R; ++r) sum[r] = load(y + (i + r) * columns + j);
        for (Index k = 0; k < inner; ++k) {
            const Four<V> right = load(b + k * columns + j);
            for (int r = 0; r < R; ++r) add_scaled<Sign>(sum[r], a[(i + r) * inner + k], right);
        }
        for (int r = 0; r < R; ++r) store(y + (i + r) * columns + j, sum[r]);
    }
    for (; j < last; ++j) {
        V sum[R];
        for (int r = 0; r < R; ++r) sum[r] = y[(i + r) * columns + j];
        for (Index k = 0; k < inner; ++k) {
            for (int r = 0; r < R; ++r) {
                if (Sign > 0) {
                    sum[r] += a[(i + r) * inner + k] * b[k * columns + j];
                } else {
                    sum[r] -= a[(i + r) * inner + k] * b[k * columns + j];
                }
            }
        }
        for (int r = 0; r < R; ++r) y[(i + r) * columns + j] = sum[r];
    }
}

template <int Sign, class V>
LDM_INLINE void matmul_body(V* y, const V* a, const V* b, Index rows, Index inner, Index columns) {
    Index i = 0;
    for (; i + 2 <= rows; i += 2) add_rows<2, Sign>(y, a, b, i, inner, columns, columns);
    if (i < rows) add_rows<1, Sign>(y, a, b, i, inner, columns, columns);
}

template <class V>
LDM_INLINE void lower_body(V* y, const V* a, const V* b, Index size, Index inner) {
    Index i = 0;
    for (; i + 2 <= size; i += 2) add_rows<2, 1>(y, a, b, i, inner, size, i + 2);
    if (i < size) add_rows<1, 1>(y, a, b, i, inner, size, i + 1);
}

// What is called often is compiled once for all callers, in small_matrix.cpp: written out in each of them it takes minutes to
// compile. First y += a b and y -= a b, for a (rows, inner) and b (inner, columns). Then y += a b where the sum is symmetric,
// (size, size): only what lies on and under its diagonal is sure to be right.
// Last x <- (L L')^-1 x and x <- L^-T x, for x (size, columns).
#define LDM_DECLARE_PRODUCTS(V)                                                                            \
    void add_matmul(V* y, const V* a, const V* b, Index rows, Index inner, Index columns);                 \
    void subtract_matmul(V* y, const V* a, const V* b, Index rows, Index inner, Index columns);            \
    void add_lower(V* y, const V* a, const V* b, Index size, Index inner);                                 \
    void solve_both(V* x, const V* L, const V* inverse, Index size, Index columns);                        \
    void solve_upper(V* x, const V* L, const V* inverse, Index size, Index columns);

LDM_DECLARE_PRODUCTS(Lanes<kPack>)
LDM_DECLARE_PRODUCTS(double)

template <class V>
LDM_INLINE void fill(V* y, Index size) {
    for (Index i = 0; i < size; ++i) y[i] = V{};
}

template <class V>
LDM_INLINE void matmul(V* y, const V* a, const V* b, Index rows, Index inner, Index columns) {
    fill(y, rows * columns);
    add_matmul(y, a, b, rows, inner, columns);
}

template <class V>
LDM_INLINE void transpose(V* LDM_RESTRICT y, const V* LDM_RESTRICT x, Index rows, Index columns) {
    for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < columns; ++j) y[j * rows + i] = x[i * columns + j];
    }
}

// Symmetric matrices.

// The upper half from the lower.
template <class V>
LDM_INLINE void mirror(V* x, Index size) {
    for (Index i = 0; i < size; ++i) {
        for (Index j = 0; j < i; ++j) x[j * size + i] = x[i * size + j];
    }
}

// (x + x') / 2.
template <class V>
LDM_INLINE void symmetrise(V* x, Index size) {
    for (Index i = 0; i < size; ++i) {
        for (Index j = 0; j < i; ++j) {
            V sum = x[i * size + j];
            sum += x[j * size + i];
            x[i * size + j] = x[j * size + i] = 0.5 * sum;
        }
    }
}

// L of x = L L', with zeros above its diagonal, and 1 / L_ii. Returns the smallest pivot; NaN where one was NaN.
template <class V>
LDM_INLINE V cholesky(V* LDM_RESTRICT L, V* LDM_RESTRICT inverse, const V* LDM_RESTRICT x, Index size) {
    V worst = x[0];
    for (Index i = 0; i < size; ++i) {
        for (Index j = 0; j <= i; ++j) {
            V sum = x[i * size + j];
            for (Index k = 0; k < j; ++k) sum -= L[i * size + k] * L[j * size + k];
            if (j < i) {
                L[i * size + j] = sum * inverse[j];
                L[j * size + i] = V{};
                continue;
            }
            worst = smaller(worst, sum);
            L[i * size + i] = map(sum, [](double pivot) { return std::sqrt(pivot); });
            inverse[i] = map(L[i * size + i], [](double root) { return 1.0 / root; });
        }
    }
    return worst;
}

// x <- L^-1 x, for x (size, columns).
template <class V>
LDM_INLINE void solve_lower_body(V* LDM_RESTRICT x, const V* LDM_RESTRICT L, const V* LDM_RESTRICT inverse, Index size, Index columns) {
    for (Index i = 0; i < size; ++i) {
        for (Index k = 0; k < i; ++k) {
            const V factor = L[i * size + k];
            for (Index j = 0; j < columns; ++j) x[i * columns + j] -= factor * x[k * columns + j];
        }
        for (Index j = 0; j < columns; ++j) x[i * columns + j] = inverse[i] * x[i * columns + j];
    }
}

// x <- L^-T x.
template <class V>
LDM_INLINE void solve_upper_body(V* LDM_RESTRICT x, const V* LDM_RESTRICT L, const V* LDM_RESTRICT inverse, Index size, Index columns) {
    for (Index i = size - 1; i >= 0; --i) {
        for (Index k = i + 1; k < size; ++k) {
            const V factor = L[k * size + i];
            for (Index j = 0; j < columns; ++j) x[i * columns + j] -= factor * x[k * columns + j];
        }
        for (Index j = 0; j < columns; ++j) x[i * columns + j] = inverse[i] * x[i * columns + j];
    }
}

}  // namespace ldm
