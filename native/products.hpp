// Small dense matrices, row-major, of numbers V (lanes.hpp).
#pragma once

#include "lanes.hpp"

namespace ldm {
namespace LDM_ISA {

// y = from + a b, y = from - a b and y = a b, a or b transposed where that is said: a is (rows, inner) or (inner, rows), b (inner, columns) or
// (columns, inner). From y itself where nothing else is said.
enum class Sum { set, plus, minus };
enum class Form { ab, abt, atb };  // a b, a b', a' b

template <int R, int K, Sum kSum, Form kForm, class V>
LDM_INLINE void block(V* y, const V* from, const V* a, const V* b, Index i, Index j, Index rows, Index inner, Index columns) {
    V sum[R][K];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < K; ++c) sum[r][c] = kSum == Sum::set ? V{} : from[(i + r) * columns + j + c];
    }
    for (Index k = 0; k < inner; ++k) {
        V right[K];
#pragma GCC unroll 4
        for (int c = 0; c < K; ++c) right[c] = kForm == Form::abt ? b[(j + c) * inner + k] : b[k * columns + j + c];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const V left = kForm == Form::atb ? a[k * rows + i + r] : a[(i + r) * inner + k];
#pragma GCC unroll 4
            for (int c = 0; c < K; ++c) {
                if (kSum == Sum::minus) {
                    sum[r][c] -= left * right[c];
                } else {
                    sum[r][c] += left * right[c];
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < K; ++c) y[(i + r) * columns + j + c] = sum[r][c];
    }
}

template <int R, Sum kSum, Form kForm, class V>
LDM_INLINE void block_row(V* y, const V* from, const V* a, const V* b, Index i, Index rows, Index inner, Index columns, Index last) {
    Index j = 0;
    for (; j < last && j + 4 <= columns; j += 4) block<R, 4, kSum, kForm>(y, from, a, b, i, j, rows, inner, columns);
    if (j < last && j + 2 <= columns) {
        block<R, 2, kSum, kForm>(y, from, a, b, i, j, rows, inner, columns);
        j += 2;
    }
    if (j < last) block<R, 1, kSum, kForm>(y, from, a, b, i, j, rows, inner, columns);
}

// Where `lower`, the result is symmetric: only what lies on and under its diagonal is sure to be right, and above it anything may stand.
template <Sum kSum, Form kForm, bool lower, class V>
LDM_INLINE void product_body(V* y, const V* from, const V* a, const V* b, Index rows, Index inner, Index columns) {
    Index i = 0;
    for (; i + kRows <= rows; i += kRows) block_row<kRows, kSum, kForm>(y, from, a, b, i, rows, inner, columns, lower ? i + kRows : columns);
    if (kRows > 2 && i + 2 <= rows) {
        block_row<2, kSum, kForm>(y, from, a, b, i, rows, inner, columns, lower ? i + 2 : columns);
        i += 2;
    }
    if (i < rows) block_row<1, kSum, kForm>(y, from, a, b, i, rows, inner, columns, lower ? i + 1 : columns);
}

template <Sum kSum, Form kForm, bool lower, class V>
LDM_NOINLINE void product_call(V* y, const V* from, const V* a, const V* b, Index rows, Index inner, Index columns) {
    product_body<kSum, kForm, lower>(y, from, a, b, rows, inner, columns);
}

#if defined(__GNUC__) || defined(__clang__)
// The product of plain numbers, as the covariances that all sequences share need it: several columns of the result in one vector.
template <class Part, int R, Sum kSum, Form kForm>
LDM_INLINE void block_wide(double* y, const double* from, const double* a, const double* b, Index i, Index rows, Index inner, Index columns) {
    Part sum[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
        if (kSum == Sum::set) {
            sum[r] = Part{};
        } else {
            std::memcpy(&sum[r], from + (i + r) * columns, sizeof(Part));
        }
    }
    for (Index k = 0; k < inner; ++k) {
        Part right;
        std::memcpy(&right, b + k * columns, sizeof(Part));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const double left = kForm == Form::atb ? a[k * rows + i + r] : a[(i + r) * inner + k];
            if (kSum == Sum::minus) {
                sum[r] -= left * right;
            } else {
                sum[r] += left * right;
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) std::memcpy(y + (i + r) * columns, &sum[r], sizeof(Part));
}

template <class Part, Sum kSum, Form kForm>
LDM_INLINE void columns_wide(double* y, const double* from, const double* a, const double* b, Index rows, Index inner, Index columns) {
    Index i = 0;
    for (; i + 4 <= rows; i += 4) block_wide<Part, 4, kSum, kForm>(y, from, a, b, i, rows, inner, columns);
    for (; i < rows; ++i) block_wide<Part, 1, kSum, kForm>(y, from, a, b, i, rows, inner, columns);
}

using Quad = double __attribute__((vector_size(4 * sizeof(double))));
constexpr Index kTurned = 1024;  // numbers of b that are turned on the stack; wider ones are left to the blocks

template <Sum kSum, Form kForm, bool lower>
LDM_NOINLINE void product_call(double* y, const double* from, const double* a, const double* b, Index rows, Index inner, Index columns) {
    if (columns < 4 || (kForm == Form::abt && inner * columns > kTurned)) return product_body<kSum, kForm, lower>(y, from, a, b, rows, inner, columns);
    constexpr Form form = kForm == Form::abt ? Form::ab : kForm;
    double turned[kForm == Form::abt ? kTurned : 1];
    if (kForm == Form::abt) {
        for (Index j = 0; j < columns; ++j) {
            for (Index k = 0; k < inner; ++k) turned[k * columns + j] = b[j * inner + k];
        }
        b = turned;
    }
    Index j = 0;
    if constexpr (kWidth > 4) {
        for (; j + kWidth <= columns; j += kWidth) columns_wide<Vector, kSum, form>(y + j, from + j, a, b + j, rows, inner, columns);
    }
    for (; j + 4 <= columns; j += 4) columns_wide<Quad, kSum, form>(y + j, from + j, a, b + j, rows, inner, columns);
    for (; j < columns; ++j) {
        for (Index i = 0; i < rows; ++i) block<1, 1, kSum, form>(y, from, a, b, i, j, rows, inner, columns);
    }
}
#endif

// Written out where the sizes are known when this is compiled, called elsewhere.
template <Sum kSum, Form kForm, bool lower, bool known, class V>
LDM_INLINE void product_from(V* y, const V* from, const V* a, const V* b, Index rows, Index inner, Index columns) {
    if constexpr (known) {
        product_body<kSum, kForm, lower>(y, from, a, b, rows, inner, columns);
    } else {
        product_call<kSum, kForm, lower>(y, from, a, b, rows, inner, columns);
    }
}

template <Sum kSum, Form kForm, bool lower, bool known, class V>
LDM_INLINE void product(V* y, const V* a, const V* b, Index rows, Index inner, Index columns) {
    product_from<kSum, kForm, lower, known>(y, y, a, b, rows, inner, columns);
}

// Symmetric matrices.

// The upper half from the lower.
template <class V>
LDM_INLINE void mirror(V* x, Index size) {
    for (Index i = 1; i < size; ++i) {
        for (Index j = 0; j < i; ++j) x[j * size + i] = x[i * size + j];
    }
}

// (x + x') / 2.
template <class V>
LDM_INLINE void symmetrise(V* x, Index size) {
    for (Index i = 1; i < size; ++i) {
        for (Index j = 0; j < i; ++j) x[i * size + j] = x[j * size + i] = 0.5 * (x[i * size + j] + x[j * size + i]);
    }
}

// y += (x + x') / 2.
template <class V>
LDM_INLINE void add_symmetric(V* LDM_RESTRICT y, const V* LDM_RESTRICT x, Index size) {
    for (Index i = 0; i < size; ++i) {
        for (Index j = 0; j < size; ++j) y[i * size + j] += 0.5 * (x[i * size + j] + x[j * size + i]);
    }
}

// L of x = L L' on and under the diagonal, and 1 / L_ii. Returns the smallest pivot; NaN where one was NaN. Eliminated column by column without
// roots, of which each would wait for the one before: the columns are scaled at the end.
template <class V>
LDM_INLINE V cholesky(V* LDM_RESTRICT L, V* LDM_RESTRICT inverse, const V* LDM_RESTRICT x, Index size) {
    for (Index i = 0; i < size; ++i) {
        for (Index j = 0; j <= i; ++j) L[i * size + j] = x[i * size + j];
    }
    V worst = x[0];
    for (Index j = 0; j < size; ++j) {
        const V pivot = L[j * size + j];
        worst = pivot < worst || pivot != pivot ? pivot : worst;
        inverse[j] = 1.0 / pivot;
        for (Index i = j + 1; i < size; ++i) {
            const V share = L[i * size + j] * inverse[j];
            for (Index k = j + 1; k <= i; ++k) L[i * size + k] -= share * L[k * size + j];
        }
    }
    for (Index j = 0; j < size; ++j) {
        const V scale = root(L[j * size + j]) * inverse[j];
        inverse[j] = scale;
        for (Index i = j; i < size; ++i) L[i * size + j] *= scale;
    }
    return worst;
}

// x = L^-1 b or L^-T b, K columns at a time, which stay in registers. b may be x.
template <int K, bool lower, class V>
LDM_INLINE void solve_columns(V* x, const V* b, const V* LDM_RESTRICT L, const V* LDM_RESTRICT inverse, Index size, Index columns) {
    for (Index step = 0; step < size; ++step) {
        const Index i = lower ? step : size - 1 - step;
        V row[K];
#pragma GCC unroll 8
        for (int c = 0; c < K; ++c) row[c] = b[i * columns + c];
        for (Index k = lower ? 0 : i + 1; k < (lower ? i : size); ++k) {
            const V factor = lower ? L[i * size + k] : L[k * size + i];
#pragma GCC unroll 8
            for (int c = 0; c < K; ++c) row[c] -= factor * x[k * columns + c];
        }
#pragma GCC unroll 8
        for (int c = 0; c < K; ++c) x[i * columns + c] = row[c] * inverse[i];
    }
}

template <bool lower, class V>
LDM_INLINE void solve(V* x, const V* b, const V* L, const V* inverse, Index size, Index columns) {
    Index j = 0;
    for (; j + 8 <= columns; j += 8) solve_columns<8, lower>(x + j, b + j, L, inverse, size, columns);
    if (j + 4 <= columns) solve_columns<4, lower>(x + j, b + j, L, inverse, size, columns), j += 4;
    if (j + 2 <= columns) solve_columns<2, lower>(x + j, b + j, L, inverse, size, columns), j += 2;
    if (j < columns) solve_columns<1, lower>(x + j, b + j, L, inverse, size, columns);
}

// x <- L^-1 x, for x (size, columns).
template <class V>
LDM_INLINE void solve_lower(V* x, const V* L, const V* inverse, Index size, Index columns) {
    solve<true>(x, x, L, inverse, size, columns);
}

// x <- L^-T x.
template <class V>
LDM_INLINE void solve_upper(V* x, const V* L, const V* inverse, Index size, Index columns) {
    solve<false>(x, x, L, inverse, size, columns);
}

// y = L^-1, lower triangular, zeros above.
template <class V>
LDM_INLINE void invert_lower(V* LDM_RESTRICT y, const V* LDM_RESTRICT L, const V* LDM_RESTRICT inverse, Index size) {
    fill(y, size * size);
    for (Index j = 0; j < size; ++j) {
        y[j * size + j] = inverse[j];
        for (Index i = j + 1; i < size; ++i) {
            V sum{};
            for (Index k = j; k < i; ++k) sum += L[i * size + k] * y[k * size + j];
            y[i * size + j] = -(inverse[i] * sum);
        }
    }
}

// sum log L_ii, as logarithms of products of four.
template <class V>
LDM_INLINE V log_diagonal(const V* L, Index size) {
    V sum{};
    for (Index i = 0; i < size; i += 4) {
        V product = L[i * size + i];
        for (Index k = i + 1; k < size && k < i + 4; ++k) product *= L[k * size + k];
        sum += log_of(product);
    }
    return sum;
}

}  // namespace LDM_ISA
}  // namespace ldm
